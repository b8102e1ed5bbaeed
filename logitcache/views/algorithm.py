"""Words to parameters: version 1 of the view algorithm; ``docs/views.md`` is normative.

Only operations that IEEE 754 rounds exactly (+, -, *, /, sqrt, rounding) and literal tables are
used: libm's exp and log differ between platforms in the last bit, and one bit can move a box.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from logitcache.draws import Purpose, unit_floats, words
from logitcache.views.spec import CentralCrop, HorizontalFlip, RandomResizedCrop

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from logitcache.views.spec import View

__all__ = ["Box", "Parameters", "exp2", "log2", "parameters", "view_floats"]

_ATTEMPTS = 10
_WORDS: dict[type, tuple[Purpose, int]] = {
    RandomResizedCrop: (Purpose.CROP, 4 * _ATTEMPTS),
    HorizontalFlip: (Purpose.FLIP, 1),
}

# 2^f = sum of c[i] f^i for |f| <= 1/2: ln(2)^i / i!
_EXP2 = (
    1.0,
    0.6931471805599453,
    0.24022650695910072,
    0.05550410866482158,
    0.009618129107628477,
    0.0013333558146428443,
    0.0001540353039338161,
    1.5252733804059841e-05,
    1.321548679014431e-06,
    1.01780860092397e-07,
    7.054911620801123e-09,
    4.4455382718708116e-10,
    2.5678435993488206e-11,
    1.3691488853904128e-12,
)
_SQRT_HALF = 0.7071067811865476
_TWO_OVER_LN2 = 2.8853900817779268


@dataclass(frozen=True)
class Box:
    """A box of whole source pixels; (top, left) is inside, (bottom, right) outside."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class Parameters:
    """Everything random about one image of one view, at any size.

    Attributes:
        crop: The box to resize, or the central crop, which depends on the size.
        flip: Whether to mirror left and right.
    """

    crop: Box | CentralCrop
    flip: bool = False


def view_floats(view: View, hashes_N: NDArray[np.uint64]) -> list[NDArray[np.float64]]:
    """Return the unit floats of each operation of a view: one (N, words) array per operation."""
    drawn = []
    for operation in view.operations:
        purpose, count = _WORDS.get(type(operation), (Purpose.CROP, 0))
        drawn.append(
            unit_floats(words(view.seed, hashes_N, draw=view.draw, purpose=purpose, count=count))
        )
    return drawn


def parameters(
    view: View, floats: Sequence[Sequence[float]], height: int, width: int
) -> Parameters:
    """Return the parameters of one image.

    Args:
        view: The recipe.
        floats: The image's row of each array of :func:`view_floats`.
        height: Rows of pixels of the decoded image.
        width: Columns of pixels of the decoded image.
    """
    crop: Box | CentralCrop = Box(0, 0, height, width)
    flip = False
    for operation, drawn in zip(view.operations, floats, strict=True):
        if isinstance(operation, RandomResizedCrop):
            crop = _resized_crop_box(drawn, height, width, operation)
        elif isinstance(operation, CentralCrop):
            crop = operation
        else:
            flip = drawn[0] < operation.p
    return Parameters(crop, flip)


def _resized_crop_box(
    floats: Sequence[float], height: int, width: int, operation: RandomResizedCrop
) -> Box:
    """Draw a box of random area and aspect, as timm and torchvision do."""
    scale, ratio = operation.scale, operation.ratio
    low, high = log2(ratio[0]), log2(ratio[1])
    for attempt in range(_ATTEMPTS):
        u_area, u_aspect, u_top, u_left = floats[4 * attempt : 4 * attempt + 4]
        area = height * width * (scale[0] + u_area * (scale[1] - scale[0]))
        aspect = exp2(low + u_aspect * (high - low))
        box_width = round(math.sqrt(area * aspect))
        box_height = round(math.sqrt(area / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = math.floor(u_top * (height - box_height + 1))
            left = math.floor(u_left * (width - box_width + 1))
            return Box(top, left, box_height, box_width)
    return _largest_central_box(height, width, ratio)


def _largest_central_box(height: int, width: int, ratio: tuple[float, float]) -> Box:
    """Return the largest central box whose aspect lies in the range."""
    box_height, box_width = height, width
    if width / height < ratio[0]:
        box_height = max(1, round(width / ratio[0]))
    elif width / height > ratio[1]:
        box_width = max(1, round(height * ratio[1]))
    return Box((height - box_height) // 2, (width - box_width) // 2, box_height, box_width)


def exp2(x: float) -> float:
    """Return 2^x by table and Horner's rule: the same bits on every platform."""
    whole = round(x)
    f = x - whole
    total = _EXP2[-1]
    for coefficient in _EXP2[-2::-1]:
        total = total * f + coefficient
    return math.ldexp(total, whole)


def log2(x: float) -> float:
    """Return the binary logarithm of x > 0 by the series of atanh: the same bits everywhere."""
    mantissa, exponent = math.frexp(x)
    if mantissa < _SQRT_HALF:
        mantissa, exponent = 2.0 * mantissa, exponent - 1
    s = (mantissa - 1.0) / (mantissa + 1.0)
    square = s * s
    total = 0.0
    for odd in range(25, 0, -2):
        total = total * square + 1.0 / odd
    return exponent + _TWO_OVER_LN2 * (s * total)
