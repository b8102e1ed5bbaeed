"""Geometric operations: crops, resizes, flips, rotations and affine maps.

Resizing is torch's antialiased interpolation of uint8, which torchvision's v2 transforms call as
well: the same pixels without their overhead. Affine maps are PIL's.

Shapes: C channels, H W source height and width, S side of the resulting square.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from logitcache.errors import UnreadableImage
from logitcache.views.arithmetic import cosine, sine
from logitcache.views.resample import resized_window

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from logitcache.views.operations import BorderCrop
    from logitcache.views.parameters import Box
    from logitcache.views.spec import Interpolation

__all__ = [
    "AFFINE_STEPS",
    "crop_border",
    "crop_box",
    "crop_center",
    "crop_squash",
    "flip",
    "flip_vertical",
    "low_resolution",
    "rot90",
]

_PIL_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_MOST_PIXELS = 1 << 24  # of a resized image that is in memory as a whole
_LONGEST = 1 << 26  # side of a resized image
Matrix = tuple[float, float, float, float, float, float]


def crop_box(image_CHW: Tensor, box: Box, size: int, interpolation: Interpolation) -> Tensor:
    """Cut a box out of the image and resize it to a square: uint8 (C, S, S)."""
    bottom, right = box.top + box.height, box.left + box.width
    if (box.height, box.width) != image_CHW.shape[1:]:
        image_CHW = image_CHW[:, box.top : bottom, box.left : right]
    return _resize(image_CHW, size, size, interpolation)


def crop_center(
    image_CHW: Tensor, fraction: float, size: int, interpolation: Interpolation
) -> Tensor:
    """Resize the shorter side to floor(size / fraction), then cut out the center, as timm does.

    The longer side is rounded down; the offset of the center to the nearest, halves to even.

    Raises:
        UnreadableImage: The longer side would be too long to be resized in bounded time.
    """
    height, width = image_CHW.shape[1:]
    shorter = math.floor(size / fraction)
    new_height = shorter * height // min(height, width)
    new_width = shorter * width // min(height, width)
    if max(new_height, new_width) > _LONGEST:
        raise UnreadableImage(
            "the aspect ratio of the image is too large for a center crop",
            expected=f"sides up to {_LONGEST} pixels after resizing",
            got=f"{width} x {height} pixels, resized {new_width} x {new_height}",
            hint="remove the image, or use views with crop_mode squash or border",
        )
    return _resized_center(image_CHW, (new_height, new_width), (size, size), interpolation)


def crop_squash(
    image_CHW: Tensor, fraction: float, size: int, interpolation: Interpolation
) -> Tensor:
    """Resize both sides to floor(size / fraction), then cut out the center (``squash``)."""
    side = math.floor(size / fraction)
    return _resized_center(image_CHW, (side, side), (size, size), interpolation)


def crop_border(
    image_CHW: Tensor, how: BorderCrop, size: int, interpolation: Interpolation
) -> Tensor:
    """Resize the longer side to floor(size / fraction), fill up, cut the center (``border``)."""
    height, width = image_CHW.shape[1:]
    ratio = max(height, width) / math.floor(size / how.crop_pct)
    resized = max(1, round(height / ratio)), max(1, round(width / ratio))
    window = min(size, resized[0]), min(size, resized[1])
    center = _resized_center(image_CHW, resized, window, interpolation)
    if window == (size, size):
        return center
    square = torch.tensor(how.fill, dtype=torch.uint8).view(3, 1, 1).repeat(1, size, size)
    top, left = ((size - side) // 2 for side in window)
    square[:, top : top + window[0], left : left + window[1]] = center
    return square


def flip(image_CHW: Tensor) -> Tensor:
    """Mirror left and right."""
    return image_CHW.flip(-1)


def flip_vertical(image_CHW: Tensor) -> Tensor:
    """Mirror top and bottom."""
    return image_CHW.flip(-2)


def rot90(square_CSS: Tensor, turns: float) -> Tensor:
    """Rotate counter-clockwise by quarter turns."""
    return torch.rot90(square_CSS, int(turns), (1, 2))


def low_resolution(square_CSS: Tensor, factor: float, *, interpolation: Interpolation) -> Tensor:
    """Resize to a side that is ``factor`` times shorter, at least 1 pixel, and back."""
    side = square_CSS.shape[-1]
    shorter = max(1, round(side / factor))
    return _resize(_resize(square_CSS, shorter, shorter, interpolation), side, side, interpolation)


def _rotation(width: int, height: int, degrees: float) -> Matrix:
    """Return PIL's matrix of a rotation around the center, with portable sines."""
    cos, sin = round(cosine(-degrees), 15), round(sine(-degrees), 15)
    x, y = width / 2.0, height / 2.0
    return (cos, sin, cos * -x + sin * -y + x, -sin, cos, -sin * -x + cos * -y + y)


_MATRICES: dict[str, Callable[[int, int, float], Matrix]] = {
    "rotate": _rotation,
    "shear_x": lambda _, __, factor: (1, factor, 0, 0, 1, 0),
    "shear_y": lambda _, __, factor: (1, 0, 0, factor, 1, 0),
    "translate_x": lambda width, _, share: (1, 0, share * width, 0, 1, 0),
    "translate_y": lambda _, height, share: (1, 0, 0, 0, 1, share * height),
}


def _affine(name: str) -> Callable[..., Image.Image]:
    matrix_of = _MATRICES[name]

    def apply(
        picture: Image.Image, amount: float, *fill: float, interpolation: Interpolation
    ) -> Image.Image:
        return picture.transform(
            picture.size,
            Image.Transform.AFFINE,
            matrix_of(*picture.size, amount),
            resample=_PIL_FILTERS[interpolation],
            fillcolor=tuple(int(level) for level in fill),
        )

    return apply


AFFINE_STEPS = {name: _affine(name) for name in _MATRICES}
"""Functions of an RGB image of PIL, an amount and a fill color, by the name of their step."""


def _resized_center(
    image_CHW: Tensor,
    resized: tuple[int, int],
    window: tuple[int, int],
    interpolation: Interpolation,
) -> Tensor:
    """Resize an image and cut out a window at its center; offsets are rounded, halves to even."""
    top, left = (round((side - cut) / 2) for side, cut in zip(resized, window, strict=True))
    if resized[0] * resized[1] > _MOST_PIXELS:
        return resized_window(image_CHW, resized, (top, left), window, interpolation)
    whole = _resize(image_CHW, *resized, interpolation)
    return whole[:, top : top + window[0], left : left + window[1]]


def _resize(image_CHW: Tensor, height: int, width: int, interpolation: Interpolation) -> Tensor:
    """Resize an image; the memory of the result is (height, width, C)."""
    if image_CHW.shape[1:] == (height, width):
        return image_CHW
    # in the order that decoders write, of which torch makes no copy with four channels before, and
    # none with three afterwards; it resizes images in its own order to 1 x 1 with an internal
    # error, and without AVX2 kernels to a width of 1 with wrong pixels
    image_HWC = np.ascontiguousarray(image_CHW.permute(1, 2, 0).numpy())
    out = functional.interpolate(
        torch.from_numpy(image_HWC)[None].permute(0, 3, 1, 2),
        size=(height, width),
        mode=interpolation,
        antialias=True,
    )
    return out[0]
