"""Error propagation through the reductions of features.

Two forward passes of the same images differ slightly in every activation, relative to the terms
that were summed. The stored features may be averaged, standardized or projected, which makes the
difference smaller or, where a channel is nearly constant, much larger.

Shapes: N rows, D channels, H and W height and width.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from logitcache.encoding.principal_components import Principal

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from logitcache.encoding.features import FeatureEncoding

    Reduce = Callable[[NDArray[np.float32], FeatureEncoding], NDArray[np.float32]]

__all__ = ["magnitudes", "reduced_noise", "relative_difference"]

_FLAT = np.float32(1e-6)  # added to the standard deviation of a channel, see docs/format.md


def magnitudes(values_N: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the size that the noise of each activation (N, ...) is relative to.

    It is the absolute value plus the root mean square of the row: an activation near zero is the
    sum of larger terms that cancel, and has their rounding errors.
    """
    axes = tuple(range(1, values_N.ndim))
    row_rms = np.sqrt(np.square(values_N).mean(axis=axes, keepdims=True))
    sizes: NDArray[np.float32] = np.abs(values_N) + row_rms
    return sizes


def relative_difference(
    values_N: NDArray[np.float32], others_N: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Return the largest difference of each row, relative to :func:`magnitudes`, float64 (N,)."""
    sizes = np.maximum(magnitudes(values_N), np.finfo(np.float32).tiny)
    relative = (np.abs(values_N - others_N) / sizes).reshape(len(values_N), -1)
    largest_N: NDArray[np.float64] = relative.max(axis=1).astype(np.float64)
    return largest_N


def reduced_noise(
    values_N: NDArray[np.float32],
    relative_N: NDArray[np.float64],
    encoding: FeatureEncoding,
    reduce: Reduce,
) -> NDArray[np.float32]:
    """Return the largest error of each stored number.

    Args:
        values_N: Output of the tap before any reduction, (N, ...).
        relative_N: Largest relative difference of an activation of each row.
        encoding: Encoding of the tap.
        reduce: Function that applies the reductions of an encoding to rows of this tap.

    Returns:
        float32 (N, ...), of the shape of the stored rows.
    """
    rows = (len(values_N),) + (1,) * (values_N.ndim - 1)
    relative = relative_N.astype(np.float32).reshape(rows)
    noise, plain = relative * magnitudes(values_N), encoding
    if encoding.standardized:
        values_N, noise = _standardized(values_N, noise)
        plain = replace(encoding, standardized=False)
    if encoding.reduction == "energy":
        # the mean of squares changes most where every number moves away from zero
        return reduce(np.abs(values_N) + noise, plain) - reduce(values_N, plain)
    if encoding.principal is None:
        return reduce(noise, plain)  # a mean changes by no more than the mean of the changes
    # Along a direction, independent noise of the channels adds up by its variance. Noise that is
    # common to the channels scales a coordinate, as a larger or smaller activation would.
    weights = np.square(encoding.principal.basis)
    squared = Principal(np.zeros_like(encoding.principal.mean), weights)
    variance = reduce(np.square(noise), replace(plain, principal=squared))
    stored = reduce(values_N, plain)
    of_stored = relative_N.astype(np.float32).reshape((len(stored),) + (1,) * (stored.ndim - 1))
    found: NDArray[np.float32] = np.sqrt(variance) + of_stored * np.abs(stored)
    return found


def _standardized(
    maps_NDHW: NDArray[np.float32], noise_NDHW: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return maps with mean 0 and standard deviation 1 in each channel, and their largest errors.

    Mean and standard deviation have errors, too: a channel of nothing but noise can become any.
    """
    positions = (2, 3)
    mean = maps_NDHW.mean(axis=positions, keepdims=True)
    deviation = maps_NDHW.std(axis=positions, keepdims=True)
    values = (maps_NDHW - mean) / (deviation + _FLAT)
    mean_moves = noise_NDHW.mean(axis=positions, keepdims=True)
    deviation_moves = np.sqrt(np.square(noise_NDHW).mean(axis=positions, keepdims=True))
    moves = noise_NDHW + mean_moves + np.abs(values) * deviation_moves
    return values, moves / np.maximum(deviation + _FLAT - deviation_moves, _FLAT)
