"""Color operations: jitter, grayscale and blur.

PIL instead of tensors: it is two to four times as fast for most of these, the same in Pillow 11 to
13, and independent of the vector instructions that torch selects. Tables of 256 entries are
computed here, so they do not depend on the version of Pillow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from logitcache.views.parameters import Step

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from logitcache.views.operations import ColorJitter, Grey, RandomBlur

__all__ = ["COLOR_STEPS", "draw_blur", "draw_grey", "draw_jitter"]

_REFERENCE_SIDE = 224.0  # blurs are given in pixels of a square of this side

_JITTERED = ("brightness", "contrast", "color")

Picture = Image.Image


def draw_jitter(operation: ColorJitter, floats: Sequence[float]) -> list[Step]:
    """Return the steps of a color jitter: 8 words (whether, three for the order, four factors)."""
    if floats[0] >= operation.p:
        return []
    order = [0, 1, 2, 3]
    for position in range(3):
        other = position + int(floats[1 + position] * (4 - position))
        order[position], order[other] = order[other], order[position]
    ranges = (operation.brightness, operation.contrast, operation.saturation)
    steps = [
        None if low == high == 1 else Step(name, (low + u * (high - low),))
        for name, (low, high), u in zip(_JITTERED, ranges, floats[4:7], strict=True)
    ]
    turn = int((2.0 * floats[7] - 1.0) * operation.hue * 255)
    steps.append(Step("hue", (turn % 256,)) if operation.hue else None)
    return [step for index in order if (step := steps[index]) is not None]


def draw_grey(operation: Grey, floats: Sequence[float]) -> list[Step]:
    """Return the grayscale step: 1 word."""
    return [Step("grey")] if floats[0] < operation.p else []


def draw_blur(operation: RandomBlur, floats: Sequence[float]) -> list[Step]:
    """Return the blur step: 2 words."""
    low, high = operation.radius
    return [Step("blur", (low + floats[1] * (high - low),))] if floats[0] < operation.p else []


def _table(picture: Picture, levels: NDArray[np.int64]) -> Picture:
    """Replace every level by an entry of a table (256,)."""
    return picture.point(np.tile(levels, 3).tolist())


_LEVELS = np.arange(256)


def _posterize(picture: Picture, bits: float) -> Picture:
    """Keep the highest bits; 0 bits are black, and 8 or more keep everything."""
    return _table(picture, _LEVELS & (256 - (1 << max(0, 8 - int(bits)))))


def _solarize_add(picture: Picture, added: float) -> Picture:
    lighter = np.minimum(255, _LEVELS + int(added))
    return _table(picture, np.where(_LEVELS < 128, lighter, _LEVELS))


def _hue(picture: Picture, turn: float) -> Picture:
    """Rotate the hue by 256ths, as torchvision does."""
    hue, saturation, value = picture.convert("HSV").split()
    # uint8 wraps around, as a hue does
    turned = Image.fromarray(np.asarray(hue) + np.uint8(turn))
    return Image.merge("HSV", (turned, saturation, value)).convert("RGB")


COLOR_STEPS: dict[str, Callable[..., Picture]] = {
    "autocontrast": ImageOps.autocontrast,
    "equalize": ImageOps.equalize,
    "invert": lambda picture: _table(picture, 255 - _LEVELS),
    "posterize": _posterize,
    "solarize": lambda picture, threshold: _table(
        picture, np.where(threshold > _LEVELS, _LEVELS, 255 - _LEVELS)
    ),
    "solarize_add": _solarize_add,
    "color": lambda picture, factor: ImageEnhance.Color(picture).enhance(factor),
    "contrast": lambda picture, factor: ImageEnhance.Contrast(picture).enhance(factor),
    "brightness": lambda picture, factor: ImageEnhance.Brightness(picture).enhance(factor),
    "sharpness": lambda picture, factor: ImageEnhance.Sharpness(picture).enhance(factor),
    "hue": _hue,
    "grey": lambda picture: picture.convert("L").convert("RGB"),
    "blur": lambda picture, radius: picture.filter(
        ImageFilter.GaussianBlur(radius * picture.width / _REFERENCE_SIDE)
    ),
}
"""Functions of an RGB image of PIL, by the name of their step."""
