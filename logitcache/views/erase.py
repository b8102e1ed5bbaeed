"""Erasing and masking of boxes and cells.

Shapes: C channels, S side of the square.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from logitcache.draws import Purpose, unit_floats, words
from logitcache.views.arithmetic import exp2, log2, normal_quantile, normal_quantiles
from logitcache.views.parameters import Step

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from logitcache.views.operations import Drop, Mask, RandomErasing

__all__ = ["PAINT_STEPS", "draw_drop", "draw_erasing", "draw_mask", "drawn_cells", "erasing_words"]

_ATTEMPTS = 10
_NOISE_AT_ONCE = 1 << 16  # words in memory together; whole blocks of four
_WORDS_PER_BOX = 4 * _ATTEMPTS + 4  # four for each attempt, three for a color, one for noise


def erasing_words(operation: RandomErasing) -> int:
    """Return the number of words of an erasing: two, and those of each box."""
    return 2 + _WORDS_PER_BOX * operation.count


def draw_erasing(operation: RandomErasing, floats: Sequence[float]) -> list[Step]:
    """Return a step for every box that fits into the square within ten attempts."""
    if floats[0] >= operation.p:
        return []
    count = 1 + int(floats[1] * operation.count)
    steps = []
    for box in range(count):
        start = 2 + _WORDS_PER_BOX * box
        drawn = floats[start : start + _WORDS_PER_BOX]
        place = _place(operation, drawn, count)
        if place is not None:
            steps.append(_paint(operation, place, drawn[4 * _ATTEMPTS :]))
    return steps


def _place(
    operation: RandomErasing, floats: Sequence[float], count: int
) -> tuple[float, float, float, float] | None:
    """Return top, left, bottom and right of a box; None if no attempt fits."""
    (smallest, largest), (flat, tall) = operation.area, operation.aspect
    low, high = log2(flat), log2(tall)
    for attempt in range(_ATTEMPTS):
        u_area, u_aspect, u_top, u_left = floats[4 * attempt : 4 * attempt + 4]
        area = (smallest + u_area * (largest - smallest)) / count
        aspect = exp2(low + u_aspect * (high - low))
        height, width = math.sqrt(area * aspect), math.sqrt(area / aspect)
        if height < 1.0 and width < 1.0:
            top, left = u_top * (1.0 - height), u_left * (1.0 - width)
            return top, left, top + height, left + width
    return None


def _paint(
    operation: RandomErasing, place: tuple[float, float, float, float], floats: Sequence[float]
) -> Step:
    if operation.mode == "const":
        return Step("erase", (*place, *operation.fill))
    if operation.mode == "rand":
        levels = [
            mean + deviation * normal_quantile(u)
            for mean, deviation, u in zip(
                operation.fill, operation.deviation, floats[:3], strict=True
            )
        ]
        return Step("erase", (*place, *(max(0, min(255, round(level))) for level in levels)))
    noise = math.floor(floats[3] * 2.0**53)
    return Step("noise", (*place, noise, *operation.fill, *operation.deviation))


def draw_mask(operation: Mask, floats: Sequence[float]) -> list[Step]:
    """Return the mask step: it covers the cells with the smallest words, one word per cell."""
    cells = drawn_cells(np.asarray(floats), round(operation.ratio * operation.grid**2))
    return [Step("mask", (operation.grid, *operation.fill, *cells.tolist()))]


def draw_drop(operation: Drop, floats: Sequence[float]) -> list[Step]:
    """Return the drop step, which names the dropped patches and leaves the pixels as they are."""
    cells = drawn_cells(np.asarray(floats), operation.dropped)
    return [Step("drop", (operation.grid, *cells.tolist()))]


def drawn_cells(floats: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Return the cells with the smallest unit floats along the last axis, ascending."""
    return np.sort(np.argsort(floats, axis=-1, kind="stable")[..., :count], axis=-1)


def _erase(square_CSS: Tensor, *values: float) -> Tensor:
    rows, columns = _window(square_CSS, values[:4])
    out = square_CSS.clone()
    out[:, rows, columns] = _color(values[4:])
    return out


def _noise(square_CSS: Tensor, *values: float) -> Tensor:
    """Paint normal noise: channel by channel, row by row, one word each."""
    rows, columns = _window(square_CSS, values[:4])
    shape = (3, rows.stop - rows.start, columns.stop - columns.start)
    out = square_CSS.clone()
    levels = _noise_levels(int(values[4]), shape, mean=values[5:8], deviation=values[8:11])
    out[:, rows, columns] = torch.from_numpy(levels)
    return out


def _noise_levels(
    key: int, shape: tuple[int, int, int], *, mean: Sequence[float], deviation: Sequence[float]
) -> NDArray[np.uint8]:
    """Return normal levels, uint8 of a shape (3, h, w), with a mean and deviation per channel."""
    count, of_a_channel = math.prod(shape), shape[1] * shape[2]
    levels = np.empty(count, dtype=np.uint8)
    for first in range(0, count, _NOISE_AT_ONCE):
        stop = min(first + _NOISE_AT_ONCE, count)
        drawn = words(
            key, 0, draw=0, purpose=Purpose.NOISE, count=stop - first, first_block=first // 4
        )
        channels = np.arange(first, stop) // of_a_channel
        normals = normal_quantiles(unit_floats(drawn[0]))
        noise = np.asarray(mean)[channels] + np.asarray(deviation)[channels] * normals
        levels[first:stop] = np.clip(np.rint(noise), 0, 255)
    return levels.reshape(shape)


def _mask(square_CSS: Tensor, *values: float) -> Tensor:
    grid, cells = int(values[0]), values[4:]
    side = square_CSS.shape[-1]
    edges = [round(cell * side / grid) for cell in range(grid + 1)]
    out, color = square_CSS.clone(), _color(values[1:4])
    for cell in cells:
        y, x = divmod(int(cell), grid)
        out[:, edges[y] : edges[y + 1], edges[x] : edges[x + 1]] = color
    return out


def _drop(square_CSS: Tensor, *_: float) -> Tensor:
    return square_CSS  # networks leave out the patches, see networks/patch_drop.py


def _window(square_CSS: Tensor, place: Sequence[float]) -> tuple[slice, slice]:
    side = square_CSS.shape[-1]
    top, left, bottom, right = (round(fraction * side) for fraction in place)
    return slice(top, bottom), slice(left, right)


def _color(levels: Sequence[float]) -> Tensor:
    return torch.tensor([int(level) for level in levels], dtype=torch.uint8).view(3, 1, 1)


PAINT_STEPS = {"erase": _erase, "noise": _noise, "mask": _mask, "drop": _drop}
"""Functions of a square uint8 (3, S, S), by the name of their step."""
