"""Intermediate activations of a network, captured by layer name in one forward pass.

A tap is the path of a module as ``named_modules`` has it (``layer3``, ``stages.2``, ``blocks.11``,
``norm``): its output is caught; or ``pre_logits``, as timm calls what the classifier is fed. One
mechanism, a forward hook, serves every network, teacher or student, and leaves the logits what they
are without it; timm's ``forward_intermediates`` agrees (a test compares them).

Shapes: B batch, D channels, L tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from logitcache.errors import UsageError, nearest

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["PRE_LOGITS", "Layout", "TapShape", "TappedNetwork", "suggested_taps", "tap_shapes"]

Layout = Literal["NCHW", "NLC", "vector"]

PRE_LOGITS = "pre_logits"


@dataclass(frozen=True)
class TapShape:
    """What comes out of a tap.

    Attributes:
        layout: ``NCHW``, ``NLC`` or ``vector``; maps that a network keeps as NHWC come out as NCHW.
        shape: Of one row: (D, H, W), (L, D) or (D,).
        grid: Side of the square of positions; None for a vector or another shape.
        prefix_tokens: Leading tokens that are no patches: class token, registers.
        channels_last: Whether the network itself keeps this map as NHWC.
    """

    layout: Layout
    shape: tuple[int, ...]
    grid: int | None = None
    prefix_tokens: int = 0
    channels_last: bool = False

    @property
    def channels(self) -> int:
        """D."""
        return self.shape[0] if self.layout == "NCHW" else self.shape[-1]


class TappedNetwork(nn.Module):
    """A network that also returns the activations of some of its layers.

    Args:
        network: Any network; images (B, 3, S, S) to logits (B, C).
        taps: Names of taps; see the module.
        size: Side of the images that layouts are found with.

    Attributes:
        shapes: What comes out of each tap at that size.

    Raises:
        UsageError: There is no such module, or it returns no tensor of a row each.
    """

    def __init__(self, network: nn.Module, taps: Iterable[str], *, size: int) -> None:
        super().__init__()
        self.network = network
        self._modules_of = {tap: _module_of(network, tap) for tap in taps}
        self.shapes = _shapes(network, self._modules_of, size)

    def forward(self, images_B3SS: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the logits, and by tap its values (B, ...) in the layout of :attr:`shapes`."""
        logits, caught = _run(self.network, self._modules_of, images_B3SS)
        return logits, {tap: self._arranged(tap, values) for tap, values in caught.items()}

    def _arranged(self, tap: str, values: Tensor) -> Tensor:
        return values.permute(0, 3, 1, 2) if self.shapes[tap].channels_last else values


def suggested_taps(network: nn.Module) -> list[str]:
    """Return what timm itself takes features from, the last norm and ``pre_logits``."""
    info: Any = getattr(network, "feature_info", None) or []
    named = [str(stage["module"]) for stage in info if stage.get("module")]
    modules = dict(network.named_modules())
    return [*(name for name in (*named, "norm") if name in modules), PRE_LOGITS]


def tap_shapes(network: nn.Module, taps: Iterable[str], size: int) -> dict[str, TapShape]:
    """Return what comes out of taps for images of a size.

    Args:
        network: Any network.
        taps: Their names.
        size: Side of the images in pixels.

    Raises:
        UsageError: There is no such module, or it returns no tensor of a row each.
    """
    return _shapes(network, {tap: _module_of(network, tap) for tap in taps}, size)


def _module_of(network: nn.Module, tap: str) -> nn.Module:
    """Return the module that a tap listens to."""
    if tap == PRE_LOGITS:
        classifier: Any = network.get_classifier()  # type: ignore[operator]  # timm's networks have one
        if isinstance(classifier, nn.Module):
            return classifier
        raise UsageError(
            "this network has several classifiers, so no single pre_logits",
            hint="name a module: " + ", ".join(suggested_taps(network)),
        )
    modules: dict[str, nn.Module] = dict(network.named_modules())
    if tap in modules and tap:
        return modules[tap]
    raise UsageError(
        f"this network has no tap {tap!r}",
        hint=f"{nearest(tap, modules.keys())} The usual ones are "
        + ", ".join(suggested_taps(network)),
    )


def _run(
    network: nn.Module, modules: dict[str, nn.Module], images: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Run a network once, catching what its taps let through.

    Hooks live as long as the call: a copy of the network, an average say, has none of them.
    """
    caught: dict[str, Any] = {}
    handles = [
        module.register_forward_pre_hook(partial(_catch_input, caught, tap))
        if tap == PRE_LOGITS
        else module.register_forward_hook(partial(_catch_output, caught, tap))
        for tap, module in modules.items()
    ]
    try:
        answer: Tensor = network(images)
    finally:
        for handle in handles:
            handle.remove()
    for tap in modules:
        found = caught.get(tap)
        if not isinstance(found, Tensor) or found.ndim < 2 or len(found) != len(images):
            raise UsageError(
                f"tap {tap!r} gives no tensor with a row for each image",
                got=tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__,
                hint="the usual ones are " + ", ".join(suggested_taps(network)),
            )
    return answer, {tap: caught[tap] for tap in modules}


def _catch_output(
    caught: dict[str, Any], tap: str, _module: nn.Module, _inputs: Any, output: Any
) -> None:
    # cloned, for an activation in place may follow
    caught[tap] = output.clone() if isinstance(output, Tensor) else output


def _catch_input(caught: dict[str, Any], tap: str, _module: nn.Module, inputs: Any) -> None:
    caught[tap] = inputs[0].clone() if isinstance(inputs[0], Tensor) else inputs[0]


def _shapes(network: nn.Module, modules: dict[str, nn.Module], size: int) -> dict[str, TapShape]:
    first = next(network.parameters())
    training = network.training
    network.eval()  # a batch of one has no statistics to learn
    try:
        with torch.no_grad():
            _, caught = _run(network, modules, first.new_zeros(1, 3, size, size))
    finally:
        network.train(training)
    return {tap: _shape_of(network, tap, values[0]) for tap, values in caught.items()}


def _shape_of(network: nn.Module, tap: str, row: Tensor) -> TapShape:
    shape = tuple(row.shape)
    if row.ndim == 1:
        return TapShape("vector", shape)
    if row.ndim == 2:
        prefix = _prefix_tokens(network, shape[0])
        return TapShape("NLC", shape, _root(shape[0] - prefix), prefix)
    if row.ndim == 3:
        a, b, c = shape
        # images are square, so two equal axes are H and W; where all three are, timm decides
        last = a == b != c or (a == b == c and getattr(network, "output_fmt", "") == "NHWC")
        if last:
            shape = (c, a, b)
        grid = shape[1] if shape[1] == shape[2] else None
        return TapShape("NCHW", shape, grid, channels_last=last)
    raise UsageError(
        f"tap {tap!r} gives rows of {row.ndim} axes",
        expected="a map (D, H, W), tokens (L, D) or a vector (D,)",
        got=shape,
        hint="the usual ones are " + ", ".join(suggested_taps(network)),
    )


def _prefix_tokens(network: nn.Module, tokens: int) -> int:
    """Return the number of leading tokens that are no patches: that of the network, if it fits."""
    said = int(getattr(network, "num_prefix_tokens", 0))
    return said if tokens > said and (said == 0 or _root(tokens - said) is not None) else 0


def _root(count: int) -> int | None:
    root = math.isqrt(count)
    return root if root * root == count else None
