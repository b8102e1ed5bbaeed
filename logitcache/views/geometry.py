"""Crops, resizes and flips of uint8 pixels with explicit parameters and no state.

Shapes: C channels, H W source height and width, S side of the square that comes out.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as v2

if TYPE_CHECKING:
    from torch import Tensor

    from logitcache.views.algorithm import Box
    from logitcache.views.spec import Interpolation

__all__ = ["crop_box", "crop_centre", "flip"]


def crop_box(image_CHW: Tensor, box: Box, size: int, interpolation: Interpolation) -> Tensor:
    """Cut a box out of the image and resize it to a square: uint8 (C, S, S)."""
    out: Tensor = v2.resized_crop(
        image_CHW,
        box.top,
        box.left,
        box.height,
        box.width,
        [size, size],
        interpolation=InterpolationMode(interpolation),
        antialias=True,
    )
    return out


def crop_centre(
    image_CHW: Tensor, fraction: float, size: int, interpolation: Interpolation
) -> Tensor:
    """Resize the shorter side to floor(size / fraction), then cut out the centre, as timm does."""
    shorter = math.floor(size / fraction)
    resized = v2.resize(
        image_CHW, [shorter], interpolation=InterpolationMode(interpolation), antialias=True
    )
    out: Tensor = v2.center_crop(resized, [size, size])
    return out


def flip(image_CHW: Tensor) -> Tensor:
    """Mirror left and right."""
    return image_CHW.flip(-1)
