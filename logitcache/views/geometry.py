"""Crops, resizes and flips of uint8 pixels with explicit parameters and no state.

Resizing is torch's antialiased interpolation of uint8, which torchvision's v2 transforms call too:
the same pixels, without the dispatch around them.

Shapes: C channels, H W source height and width, S side of the square that comes out.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor

    from logitcache.views.algorithm import Box
    from logitcache.views.spec import Interpolation

__all__ = ["crop_box", "crop_centre", "flip"]


def crop_box(image_CHW: Tensor, box: Box, size: int, interpolation: Interpolation) -> Tensor:
    """Cut a box out of the image and resize it to a square: uint8 (C, S, S)."""
    bottom, right = box.top + box.height, box.left + box.width
    return _resize(image_CHW[:, box.top : bottom, box.left : right], size, size, interpolation)


def crop_centre(
    image_CHW: Tensor, fraction: float, size: int, interpolation: Interpolation
) -> Tensor:
    """Resize the shorter side to floor(size / fraction), then cut out the centre, as timm does.

    The longer side is rounded down; the offset of the centre to the nearest, halves to even.
    """
    height, width = image_CHW.shape[1:]
    shorter = math.floor(size / fraction)
    new_height = shorter * height // min(height, width)
    new_width = shorter * width // min(height, width)
    resized = _resize(image_CHW, new_height, new_width, interpolation)
    top, left = round((new_height - size) / 2), round((new_width - size) / 2)
    return resized[:, top : top + size, left : left + size]


def flip(image_CHW: Tensor) -> Tensor:
    """Mirror left and right."""
    return image_CHW.flip(-1)


def _resize(image_CHW: Tensor, height: int, width: int, interpolation: Interpolation) -> Tensor:
    out = functional.interpolate(
        image_CHW[None], size=(height, width), mode=interpolation, antialias=True
    )
    return out[0]
