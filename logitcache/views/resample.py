"""Resampling of a window of a large resized image.

The pixels are exactly those of torch's antialiased interpolation of uint8: two passes, rows first,
each with weights that are rounded to 16 bits. ``tests/views/test_resample.py`` compares them.

Shapes: C channels, H W source height and width, h w height and width of the window, N lines,
T weights of a line, n lines of the window.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray
    from torch import Tensor

    from logitcache.views.spec import Interpolation

__all__ = ["resized_window"]

_COLUMNS_AT_ONCE = 1 << 10
_AT_ONCE = 1 << 20  # weights that are in memory together
_MOST_BITS = 22
_LARGEST = 1 << 15
_BITS_OF_ONE = 14  # of weights from 1 up to 2, which the largest one has where an image is enlarged


def resized_window(
    image_CHW: Tensor,
    resized: tuple[int, int],
    offset: tuple[int, int],
    window: tuple[int, int],
    interpolation: Interpolation,
) -> Tensor:
    """Return a window of an image as it would be after resizing: uint8 (C, h, w).

    Args:
        image_CHW: The image, uint8.
        resized: Height and width after resizing.
        offset: First row and first column of the window after resizing.
        window: h and w.
        interpolation: Interpolation of resizing.
    """
    (height, width), (top, left) = resized, offset
    wide_wHC = _pass(image_CHW.permute(2, 1, 0).numpy(), width, left, window[1], interpolation)
    window_hwC = _pass(wide_wHC.swapaxes(0, 1), height, top, window[0], interpolation)
    return torch.from_numpy(np.ascontiguousarray(window_hwC.transpose(2, 0, 1)))


def _pass(
    lines: NDArray[np.uint8], resized: int, offset: int, count: int, interpolation: Interpolation
) -> NDArray[np.uint8]:
    """Resize the first axis of (L, N, C) and return some of its lines, (n, N, C)."""
    length = len(lines)
    if resized == length:
        return lines[offset : offset + count]
    bits = _bits(length, resized, interpolation)
    out = np.empty((count, *lines.shape[1:]), dtype=np.uint8)
    for wanted in _runs(length, resized, range(offset, offset + count), interpolation):
        lines_N = np.arange(wanted.start, wanted.stop)
        starts, weights_NT = _weights(length, resized, lines_N, interpolation)
        scaled = weights_NT * (1 << bits)
        # halves are rounded away from zero, as torch does
        rounded_NT = np.trunc(np.where(scaled < 0, scaled - 0.5, scaled + 0.5)).astype(np.int64)
        rows = slice(wanted.start - offset, wanted.stop - offset)
        for first in range(0, lines.shape[1], _COLUMNS_AT_ONCE):
            columns = slice(first, first + _COLUMNS_AT_ONCE)
            # the sums start at one half, so that the shift rounds to nearest
            sums = np.full(out[rows, columns].shape, 1 << (bits - 1), dtype=np.int64)
            for tap in range(rounded_NT.shape[1]):
                # beyond the last line of the source the weight is zero
                source = lines[np.minimum(starts + tap, length - 1), columns]
                sums += rounded_NT[:, tap, None, None] * source
            out[rows, columns] = (sums >> bits).clip(0, 255)
    return out


def _runs(length: int, resized: int, lines: range, interpolation: Interpolation) -> Iterator[range]:
    """Yield output lines in runs whose weights fit into memory together."""
    taps = _taps(length / resized, interpolation)
    step = max(1, _AT_ONCE // taps)
    for first in range(lines.start, lines.stop, step):
        yield range(first, min(first + step, lines.stop))


@lru_cache(maxsize=1024)
def _bits(length: int, resized: int, interpolation: Interpolation) -> int:
    """Return the fractional bits of the weights: as many as fit the largest one into 16 bits."""
    largest = 0.0
    for run in _runs(length, resized, range(resized), interpolation):
        weights_NT = _weights(length, resized, np.arange(run.start, run.stop), interpolation)[1]
        largest = max(largest, float(weights_NT.max()))
        if resized > length and _reaches(largest, _BITS_OF_ONE):
            return _BITS_OF_ONE  # all other weights are below 2 and do not change the result
    for bits in range(_MOST_BITS):
        if _reaches(largest, bits):
            return bits
    return _MOST_BITS


def _reaches(largest: float, bits: int) -> bool:
    """Return whether a weight would not fit into 16 bits with one more fractional bit."""
    return int(0.5 + largest * (1 << (bits + 1))) >= _LARGEST


def _weights(
    length: int, resized: int, lines_N: NDArray[np.int64], interpolation: Interpolation
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the first source line and the weights of some output lines, (N,) and (N, T)."""
    filter_of, reach = _FILTERS[interpolation]
    scale = length / resized
    support = reach * max(scale, 1.0)
    shrink = 1.0 / scale if scale >= 1.0 else 1.0
    taps = np.arange(_taps(scale, interpolation))
    centers = scale * (lines_N + 0.5)
    starts = np.maximum((centers - support + 0.5).astype(np.int64), 0)
    counts = np.minimum((centers + support + 0.5).astype(np.int64), length) - starts
    distance_NT = (taps[None, :] + starts[:, None] - centers[:, None] + 0.5) * shrink
    weights_NT = np.where(taps[None, :] < counts[:, None], filter_of(distance_NT), 0.0)
    total_N = np.zeros(len(lines_N))
    for tap in taps:  # in this order, as rounding depends on it
        total_N += weights_NT[:, tap]
    return starts, np.divide(
        weights_NT, total_N[:, None], out=weights_NT, where=total_N[:, None] != 0
    )


def _taps(scale: float, interpolation: Interpolation) -> int:
    """Return the number of weights of an output line: T."""
    return 2 * math.ceil(_FILTERS[interpolation][1] * max(scale, 1.0)) + 1


def _cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return Keys' cubic kernel with a = -0.5."""
    a, x = -0.5, np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


_FILTERS: dict[str, tuple[Callable[[NDArray[np.float64]], NDArray[np.float64]], float]] = {
    "bilinear": (lambda x: np.maximum(1.0 - np.abs(x), 0.0), 1.0),
    "bicubic": (_cubic, 2.0),
}
