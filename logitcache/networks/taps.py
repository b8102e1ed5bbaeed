"""Intermediate activations of a network, captured by layer name in one forward pass.

A tap is the name of a module in ``named_modules`` (``layer3``, ``blocks.11``, ``norm``), whose
output is captured; ``pre_logits``, timm's name for the input of the classifier; ``output``, what
the network itself returns, unless a module has this name; or a relation between patches inside of
an attention module of timm, such as ``blocks.11.attn.scores`` (``attention.py``). A branch, such as
``branches.layer1`` (``branches.py``), is run where it is a tap, and only there. Forward hooks
capture the activations of any network, teacher or student, without a change of the logits; timm's
``forward_intermediates`` returns the same (a test compares them).

Shapes: B batch, D channels, L tokens.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from torch import Tensor, nn

from logitcache.errors import UsageError, nearest
from logitcache.networks.attention import ATTENTION_TAPS, attention_tap
from logitcache.networks.branches import Branch
from logitcache.networks.forward import evaluating, one_row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from torch.utils.hooks import RemovableHandle

__all__ = [
    "OUTPUT",
    "PRE_LOGITS",
    "Layout",
    "TapShape",
    "TappedNetwork",
    "suggested_taps",
    "tap_shapes",
]

Layout = Literal["NCHW", "NLC", "vector"]

PRE_LOGITS = "pre_logits"
OUTPUT = "output"


@dataclass(frozen=True)
class _Site:
    """Where and how the activations of a tap are captured.

    Attributes:
        module: The module that is hooked.
        read: Returns the activations, from the module, its first input and its output.
        before: Whether the module is hooked before it runs, as it may change its input in place.
        prefix_tokens: Number of leading tokens, where the network does not determine it.
    """

    module: nn.Module
    read: Callable[[nn.Module, Any, Any], Any]
    before: bool = False
    prefix_tokens: int | None = None


@dataclass(frozen=True)
class TapShape:
    """Layout and shape of the output of a tap.

    Attributes:
        layout: ``NCHW``, ``NLC`` or ``vector``; maps in NHWC are returned as NCHW.
        shape: Shape of one row: (D, H, W), (L, D) or (D,).
        grid: Side of the square grid of positions; None for a vector or another shape.
        prefix_tokens: Number of leading tokens that are not patches: class token, registers.
        channels_last: Whether the network itself has this map in NHWC.
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

    def grid_of(self, values: Tensor) -> int | None:
        """Return the side of the square grid of activations, which may be of another image size.

        Args:
            values: Activations of the tap, (B, D, H, W), (B, L, D) or (B, D).
        """
        if self.layout == "vector":
            return None
        if self.layout == "NLC":
            return _root(values.shape[1] - self.prefix_tokens)
        return values.shape[2] if values.shape[2] == values.shape[3] else None


class TappedNetwork(nn.Module):
    """A network that also returns the activations of some of its layers.

    Args:
        network: Any network; images (B, 3, S, S) to logits (B, C).
        taps: Names of taps; see the module.
        size: Side of the image by which layouts are determined.
        example: An input of one row instead of that image, for a network of other inputs.
        stop: Whether a forward pass ends at the last of the taps; the logits then have no columns.

    Attributes:
        shapes: Layout and shape of each tap at that size.

    Raises:
        UsageError: There is no such module, or it does not return a tensor with a row per image.
    """

    def __init__(
        self,
        network: nn.Module,
        taps: Iterable[str],
        *,
        size: int,
        example: Tensor | None = None,
        stop: bool = False,
    ) -> None:
        super().__init__()
        self.network = network
        self._sites = {tap: _site_of(network, tap) for tap in taps}
        self.shapes, calls = _shapes(network, self._sites, size, example)
        self._calls = calls if stop else None

    def forward(self, images_B3SS: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the logits, and by tap its values (B, ...) in the layout of :attr:`shapes`."""
        logits, caught, _ = _run(self.network, self._sites, images_B3SS, self._calls)
        for tap, shape in self.shapes.items():
            if shape.channels_last:
                caught[tap] = caught[tap].permute(0, 3, 1, 2)
        return logits, caught


def suggested_taps(network: nn.Module) -> list[str]:
    """Return the taps of timm's own features, the last norm, and ``pre_logits``."""
    info: Any = getattr(network, "feature_info", None) or []
    named = [str(stage["module"]) for stage in info if stage.get("module")]
    modules = dict(network.named_modules())
    return [*(name for name in (*named, "norm") if name in modules), PRE_LOGITS]


def tap_shapes(network: nn.Module, taps: Iterable[str], size: int) -> dict[str, TapShape]:
    """Return layout and shape of taps for images of a size.

    Args:
        network: Any network.
        taps: Names of the taps.
        size: Side of the images in pixels.

    Raises:
        UsageError: There is no such module, or it does not return a tensor with a row per image.
    """
    return _shapes(network, {tap: _site_of(network, tap) for tap in taps}, size)[0]


def _site_of(network: nn.Module, tap: str) -> _Site:
    """Return where a tap is captured."""
    if tap != OUTPUT and getattr(network, "is_program", False):
        raise UsageError(
            "the layers of an exported program cannot be captured",
            got=f"tap {tap!r}",
            expected=f"tap {OUTPUT!r}, what the program returns",
            hint="export a program that returns these activations, and set head: none",
        )
    if tap == PRE_LOGITS:
        # a module without one is a classifier itself, such as one that is trained on cached vectors
        own: Any = getattr(network, "get_classifier", lambda: network)
        classifier = own()
        if classifier is None:
            raise UsageError(
                "the network has no classifier, so pre_logits is not defined",
                hint=f"{OUTPUT} is what the network returns; or give the name of a module",
            )
        if isinstance(classifier, nn.Module):
            return _Site(classifier, lambda _, x, __: x, before=True)
        raise UsageError(
            "the network has several classifiers, so pre_logits is ambiguous",
            hint="give the name of a module: " + ", ".join(suggested_taps(network)),
        )
    modules: dict[str, nn.Module] = dict(network.named_modules())
    branch = modules.get(tap)
    if isinstance(branch, Branch):
        # of a copy, since a following activation may work in place
        source = network.get_submodule(branch.source)
        return _Site(source, lambda _, __, output: branch(output.clone()))
    if (tap in modules and tap) or tap == OUTPUT:
        return _Site(modules.get(tap, network), lambda _, __, output: output)
    found = attention_tap(modules, tap)
    if found is not None:
        attention, relation = found
        first = int(getattr(network, "num_prefix_tokens", 0))
        return _Site(attention, partial(_patches, relation, first), prefix_tokens=0)
    return _unknown(network, tap, modules)


def _patches(
    relation: Callable[[Any, Tensor], Tensor], first: int, module: nn.Module, x: Tensor, _: Tensor
) -> Tensor:
    """Return a relation between patches, without prefix tokens on both axes."""
    return relation(module, x)[:, first:, first:]


def _unknown(network: nn.Module, tap: str, modules: dict[str, nn.Module]) -> NoReturn:
    """Raise the error for a tap that the network does not have."""
    if tap.rpartition(".")[2] in ATTENTION_TAPS:
        raise UsageError(
            f"the network has no attention module of timm with the tap {tap!r}",
            expected="<attention>." + " or <attention>.".join(ATTENTION_TAPS),
            hint="<attention> is the name of a timm.layers.Attention, such as blocks.11.attn; "
            "attention with rotary embeddings, in windows or of other kinds is not supported",
        )
    raise UsageError(
        f"the network has no module {tap!r} to take features from",
        expected="a module, such as " + ", ".join(suggested_taps(network)),
        hint=nearest(tap, modules.keys()),
    )


class _Complete(Exception):
    """Raised in a forward pass when everything that is wanted of it is captured."""


class _Caught:
    """Activations of one forward pass.

    Args:
        until: Number of calls of the module of each tap after which the pass is left; None to
            complete it.
    """

    def __init__(self, until: Mapping[str, int] | None) -> None:
        self.values: dict[str, Any] = {}
        self.calls: Counter[str] = Counter()
        self._until = until

    def add(self, tap: str, value: Any) -> None:
        self.values[tap] = value
        self.calls[tap] += 1
        if self.calls == self._until:
            raise _Complete


def _run(
    network: nn.Module,
    sites: dict[str, _Site],
    images: Tensor,
    until: Mapping[str, int] | None = None,
) -> tuple[Tensor, dict[str, Tensor], Mapping[str, int]]:
    """Run a network once, and capture the activations of its taps; count the calls of each.

    Hooks exist during the call only, so a copy of the network, such as an average, has none.
    """
    caught = _Caught(until)
    handles = [_hook(site, partial(caught.add, tap)) for tap, site in sites.items()]
    try:
        output: Tensor = network(images)
    except _Complete:
        output = images.new_empty(len(images), 0)
    finally:
        for handle in handles:
            handle.remove()
    for tap in sites:
        found = caught.values.get(tap)
        if not isinstance(found, Tensor) or found.ndim < 2 or len(found) != len(images):
            raise UsageError(
                f"tap {tap!r} does not return a tensor with a row for each image",
                got=tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__,
                hint="usual taps are " + ", ".join(suggested_taps(network)),
            )
    return output, {tap: caught.values[tap] for tap in sites}, caught.calls


def _hook(site: _Site, keep: Callable[[Any], None]) -> RemovableHandle:
    """Hook the module of a tap, and keep what it reads of every call."""

    def catch(module: nn.Module, inputs: Any, output: Any = None) -> None:
        found = site.read(module, inputs[0] if inputs else None, output)
        # a copy, since a following activation may work in place
        keep(found.clone() if isinstance(found, Tensor) else found)

    if site.before:
        return site.module.register_forward_pre_hook(catch)
    return site.module.register_forward_hook(catch)


def _shapes(
    network: nn.Module, sites: dict[str, _Site], size: int, example: Tensor | None = None
) -> tuple[dict[str, TapShape], Mapping[str, int]]:
    """Return the layouts and shapes of taps, and how often a forward pass calls their modules."""
    with evaluating(network):
        _, caught, calls = _run(network, sites, one_row(network, size, example))
    shapes = {t: _shape_of(network, t, sites[t], values[0]) for t, values in caught.items()}
    return shapes, calls


def _shape_of(network: nn.Module, tap: str, site: _Site, row: Tensor) -> TapShape:
    shape = tuple(row.shape)
    if row.ndim == 1:
        return TapShape("vector", shape)
    if row.ndim == 2:
        prefix = site.prefix_tokens
        if prefix is None:
            declared = int(getattr(network, "num_prefix_tokens", 0))
            fits = shape[0] > declared and (not declared or _root(shape[0] - declared) is not None)
            prefix = declared if fits else 0
        return TapShape("NLC", shape, _root(shape[0] - prefix), prefix)
    if row.ndim == 3:
        a, b, c = shape
        # images are square, so two equal axes are H and W; for three equal ones, timm's format
        last = a == b != c or (a == b == c and getattr(network, "output_fmt", "") == "NHWC")
        if last:
            shape = (c, a, b)
        grid = shape[1] if shape[1] == shape[2] else None
        return TapShape("NCHW", shape, grid, channels_last=last)
    raise UsageError(
        f"tap {tap!r} returns rows of {row.ndim} axes",
        expected="a map (D, H, W), tokens (L, D) or a vector (D,)",
        got=f"rows of shape {shape}",
        hint="usual taps are " + ", ".join(suggested_taps(network)),
    )


def _root(count: int) -> int | None:
    root = math.isqrt(max(0, count))
    return root if root * root == count else None
