"""Conversion of cached features to batches of tensors."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from logitcache.batch import Features

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from logitcache.encoding.arrays import Encoded
    from logitcache.encoding.features import FeatureEncoding

__all__ = ["decode_features", "example_features", "features_of", "join_features"]


def decode_features(
    encoding: FeatureEncoding, arrays: Encoded, positions_Bn: NDArray[np.int64] | None
) -> Features:
    """Decode the features of some rows.

    Args:
        encoding: Encoding of the layer's features.
        arrays: Encoded rows (B, ...), by name of the array.
        positions_Bn: Indices of the patches of each row that are cached; None for all patches.
    """
    positions = None if positions_Bn is None else torch.from_numpy(positions_Bn)
    return features_of(encoding, torch.from_numpy(encoding.decode(arrays)), positions)


def example_features(encoding: FeatureEncoding) -> Features:
    """Return one row of zeros with the layout and shape of every row of a layer."""
    positions = None if encoding.kept is None else torch.arange(encoding.kept)[None]
    return features_of(encoding, torch.zeros(1, *encoding.shape), positions)


def features_of(encoding: FeatureEncoding, values: Tensor, positions: Tensor | None) -> Features:
    """Return decoded values together with the properties that their encoding records.

    Args:
        encoding: Encoding of the layer's features.
        values: float32 (B, ...) in the layout of the encoding.
        positions: Indices of the cached patches of each row, int64 (B, n); None for all patches.
    """
    return Features(
        values,
        encoding.layout,
        grid=encoding.grid,
        prefix_tokens=encoding.prefix_tokens,
        positions=positions,
        reduction=encoding.reduction,
        standardized=encoding.standardized,
        principal=encoding.principal is not None,
    )


def join_features(parts: Sequence[Features]) -> Features:
    """Concatenate rows of one layer."""
    if len(parts) == 1:
        return parts[0]
    kept = [part.positions for part in parts if part.positions is not None]
    return replace(
        parts[0],
        values=torch.cat([part.values for part in parts]),
        positions=torch.cat(kept) if kept else None,
    )
