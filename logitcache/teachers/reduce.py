"""Reduction of features on the device of the teacher, before they are copied to the CPU.

Shapes: B batch, D channels, L tokens, P patches, n cached patches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor

    from logitcache.encoding.features import FeatureEncoding
    from logitcache.networks.taps import TapShape

__all__ = ["reduced"]

_FLAT = 1e-6  # added to the standard deviation, which is 0 for constant channels


def reduced(
    values_B: Tensor, tap: TapShape, encoding: FeatureEncoding, positions_Bn: Tensor | None
) -> Tensor:
    """Return activations in the layout and shape that an encoding stores, float32.

    Args:
        values_B: Activations of the layer (B, ...), in its layout.
        tap: Layout and shape of the activations.
        encoding: Encoding, which defines the reductions.
        positions_Bn: Indices of the patches of each row to cache, ascending; None for all.

    Returns:
        float32 (B, ...) in the layout and shape of the encoding.
    """
    rows = values_B.float()
    if tap.layout == "vector":
        return _projected(rows, -1, encoding)
    prefix = rows[:, : tap.prefix_tokens] if tap.layout == "NLC" else None
    patches = rows if prefix is None else rows[:, tap.prefix_tokens :]
    if encoding.reduction == "mean":
        mean = patches.mean(dim=(2, 3) if tap.layout == "NCHW" else 1)
        return _projected(mean, -1, encoding)
    if encoding.standardized:
        patches = _standardized(patches)
    if encoding.reduction == "energy":
        return _pooled(_as_map(patches, tap).square().mean(dim=1, keepdim=True), encoding)
    if tap.layout == "NCHW" and encoding.layout == "NCHW":
        return _projected(_pooled(patches, encoding), 1, encoding)
    if encoding.pool is not None:
        patches = _pooled(_as_map(patches, tap), encoding)
    tokens = patches.flatten(2).transpose(1, 2) if patches.ndim == 4 else patches
    # where the network was run on the visible patches, these are all that there are
    if positions_Bn is not None and positions_Bn.shape[1] < tokens.shape[1]:
        index = positions_Bn[:, :, None].expand(-1, -1, tokens.shape[2])
        tokens = tokens.gather(1, index)
    if prefix is not None and encoding.prefix_tokens:
        tokens = torch.cat([prefix, tokens], dim=1)
    return _projected(tokens, -1, encoding)


def _as_map(patches: Tensor, tap: TapShape) -> Tensor:
    """Return patches as a map (B, D, H, W)."""
    if tap.layout == "NCHW":
        return patches
    assert tap.grid is not None  # checked when the encoding was made
    return patches.transpose(1, 2).reshape(len(patches), -1, tap.grid, tap.grid)


def _pooled(maps_BDHW: Tensor, encoding: FeatureEncoding) -> Tensor:
    if encoding.pool is None:
        return maps_BDHW
    return functional.adaptive_avg_pool2d(maps_BDHW, encoding.pool)


def _standardized(maps_BDHW: Tensor) -> Tensor:
    """Return maps in which every channel has mean 0 and standard deviation 1 over positions."""
    mean = maps_BDHW.mean(dim=(2, 3), keepdim=True)
    deviation = maps_BDHW.std(dim=(2, 3), keepdim=True, unbiased=False)
    return (maps_BDHW - mean) / (deviation + _FLAT)


def _projected(rows: Tensor, axis: int, encoding: FeatureEncoding) -> Tensor:
    """Return the principal components of the channels."""
    if encoding.principal is None:
        return rows
    mean = torch.from_numpy(encoding.principal.mean).to(rows.device)
    basis = torch.from_numpy(encoding.principal.basis).to(rows.device)
    return ((rows.movedim(axis, -1) - mean) @ basis).movedim(-1, axis)
