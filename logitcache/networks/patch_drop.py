"""Forward passes on some of the patches of an image, as in masked autoencoders.

A network for which this is possible has a module ``patch_drop``, as timm's vision transformers
have: what it returns are the prefix tokens and all patches of an image, with embeddings of their
positions. A forward hook keeps the visible ones, so the blocks behind it are run on these alone.

Shapes: B batch, P patches, n visible ones, D channels.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from logitcache.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["check_patch_drop", "run_on_patches"]

_MODULE = "patch_drop"


@contextmanager
def run_on_patches(
    network: nn.Module, visible_Bn: Tensor, grid: int, where: str = "network"
) -> Iterator[None]:
    """Run the forward passes of a ``with`` block on some of the patches.

    Args:
        network: A network with a module ``patch_drop``.
        visible_Bn: Indices of the visible patches of each image in row-major order, int64 (B, n).
        grid: Patches along a side: P is ``grid`` squared.
        where: The network, for messages.

    Raises:
        UsageError: The network cannot drop patches, or has another grid of patches.
    """
    kept = partial(_visible, network, visible_Bn, grid, where)
    handle = _module_of(network, where).register_forward_hook(kept)
    try:
        yield
    finally:
        handle.remove()


def check_patch_drop(network: nn.Module, grid: int, size: int, where: str) -> None:
    """Check that a network can be run on some of the patches of a grid.

    Args:
        network: Any network.
        grid: Patches along a side.
        size: Side of its images in pixels.
        where: The network, for messages.

    Raises:
        UsageError: It has no module ``patch_drop``, or another grid of patches.
    """
    images = next(network.parameters()).new_zeros(1, 3, size, size)
    training = network.training
    network.eval()  # batch norm cannot learn from a batch of one
    try:
        one = torch.zeros(1, 1, dtype=torch.long, device=images.device)
        with torch.no_grad(), run_on_patches(network, one, grid, where):
            network(images)
    finally:
        network.train(training)


def _module_of(network: nn.Module, where: str) -> nn.Module:
    module = getattr(network, _MODULE, None)
    if isinstance(module, nn.Module):
        return module
    raise UsageError(
        "this network cannot be run on some of the patches of an image",
        where=where,
        expected=f"a module {_MODULE!r} behind the embeddings, as timm's vision transformers have",
        got=type(network).__name__,
        hint="choose a vision transformer, or mask pixels instead: derive mask(0.75)",
    )


def _visible(
    network: nn.Module,
    visible_Bn: Tensor,
    grid: int,
    where: str,
    _module: nn.Module,
    _inputs: Any,
    output: Any,
) -> Tensor:
    """Return the prefix tokens and the visible patches, (B, p + n, D)."""
    prefix = int(getattr(network, "num_prefix_tokens", 0))
    shape = tuple(output.shape[1:]) if isinstance(output, Tensor) else type(output).__name__
    if not isinstance(output, Tensor) or output.ndim != 3 or shape[0] != prefix + grid**2:
        raise UsageError(
            "the view drops patches of another grid than the network has",
            where=where,
            expected=f"{prefix} prefix tokens and {grid} x {grid} patches at {_MODULE!r}",
            got=f"values of shape {shape} for each image",
            hint="set views.patch_drop_grid to the side of the images over that of a patch, and no "
            "patch_drop_rate of the network itself",
        )
    index = visible_Bn[:, :, None].expand(-1, -1, output.shape[2])
    patches = output[:, prefix:].gather(1, index)
    return torch.cat([output[:, :prefix], patches], dim=1)
