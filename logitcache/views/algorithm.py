"""View algorithm, version 1: from random words to parameters.

All of it is computed by operations that IEEE 754 rounds correctly and by literal tables, see
:mod:`logitcache.views.arithmetic`.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from logitcache.draws import Purpose, unit_floats, words
from logitcache.errors import UsageError
from logitcache.views.arithmetic import exp2, log2
from logitcache.views.color import draw_blur, draw_grey, draw_jitter
from logitcache.views.erase import draw_drop, draw_erasing, draw_mask, erasing_words
from logitcache.views.mix import MIX_WORDS, draw_mix
from logitcache.views.operations import (
    BorderCrop,
    CentralCrop,
    ColorJitter,
    Drop,
    Grey,
    HorizontalFlip,
    LowRes,
    Mask,
    Mixing,
    RandAugment,
    RandomBlur,
    RandomErasing,
    RandomResizedCrop,
    Rot90,
    SquashCrop,
    VerticalFlip,
)
from logitcache.views.parameters import Box, Mix, Parameters, Step
from logitcache.views.randaugment import WORDS_PER_LAYER, draw_rand_augment

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from logitcache.views.operations import Operation
    from logitcache.views.parameters import Crop
    from logitcache.views.spec import View

__all__ = ["address_of", "check_known", "mix_shares", "parameters", "view_floats"]

_ATTEMPTS = 10

_WORDS: dict[type, tuple[Purpose, Callable[[Any], int]]] = {
    RandomResizedCrop: (Purpose.CROP, lambda _: 4 * _ATTEMPTS),
    HorizontalFlip: (Purpose.FLIP, lambda _: 1),
    VerticalFlip: (Purpose.VERTICAL_FLIP, lambda _: 1),
    RandAugment: (Purpose.RAND_AUGMENT, lambda operation: WORDS_PER_LAYER * operation.layers),
    ColorJitter: (Purpose.COLOR_JITTER, lambda _: 8),
    Grey: (Purpose.GREY, lambda _: 1),
    RandomBlur: (Purpose.BLUR, lambda _: 2),
    RandomErasing: (Purpose.ERASING, erasing_words),
    Mixing: (Purpose.MIX, lambda _: MIX_WORDS),
    Mask: (Purpose.MASK, lambda operation: operation.grid**2),
    Drop: (Purpose.MASK, lambda operation: operation.grid**2),
}
"""Purpose and number of the words of each operation; those that are missing draw nothing."""

_STEPS: dict[type, Callable[[Any, Sequence[float]], list[Step]]] = {
    HorizontalFlip: lambda operation, u: [Step("flip")] if u[0] < operation.p else [],
    VerticalFlip: lambda operation, u: [Step("flip_vertical")] if u[0] < operation.p else [],
    RandAugment: draw_rand_augment,
    ColorJitter: draw_jitter,
    Grey: draw_grey,
    RandomBlur: draw_blur,
    RandomErasing: draw_erasing,
    Rot90: lambda operation, _: [Step("rot90", (operation.turns,))],
    LowRes: lambda operation, _: [Step("lowres", (operation.factor,))],
    Mask: draw_mask,
    Drop: draw_drop,
}
"""Functions from an operation and its unit floats to steps."""


def check_known(view: View) -> None:
    """Refuse a view whose pixels are not known.

    Raises:
        UsageError: They are not.
    """
    if not view.is_known:
        raise UsageError(
            "the pixels of this view are not known, so it cannot be rendered",
            where=f"view {view.id}",
            got="outputs that were computed elsewhere and imported",
            hint="logitcache train and logitcache.loader show other views of the same images; "
            "Cache.targets returns the outputs for images from your own code",
        )


def view_floats(view: View, hashes_N: NDArray[np.uint64]) -> list[NDArray[np.float64]]:
    """Return the unit floats of each operation of a view: one (N, words) array per operation.

    Raises:
        UsageError: The pixels of the view are not known.
    """
    check_known(view)
    return [_floats(view, operation, hashes_N) for operation in view.operations]


def address_of(operation: Operation) -> tuple[Purpose, int]:
    """Return the purpose and the number of the words of an operation."""
    purpose, count = _WORDS.get(type(operation), (Purpose.CROP, lambda _: 0))
    return purpose, count(operation)


def _floats(view: View, operation: Operation, hashes_N: NDArray[np.uint64]) -> NDArray[np.float64]:
    purpose, count = address_of(operation)
    drawn = words(view.seed, hashes_N, draw=view.draw, purpose=purpose, count=count)
    return unit_floats(drawn)


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
    crop: Crop = Box(0, 0, height, width)
    mix: Mix | None = None
    before: list[Step] = []
    after: list[Step] = []
    steps = before
    for operation, drawn in zip(view.operations, floats, strict=True):
        if isinstance(operation, RandomResizedCrop):
            crop = _resized_crop_box(drawn, height, width, operation)
        elif isinstance(operation, CentralCrop | SquashCrop | BorderCrop):
            crop = operation
        elif isinstance(operation, Mixing):
            mix, steps = draw_mix(operation, drawn), after
        else:
            steps += _STEPS[type(operation)](operation, drawn)
    return Parameters(crop, tuple(before), mix, tuple(after))


def mix_shares(view: View, hashes_N: NDArray[np.uint64]) -> list[float]:
    """Return the share of each row's own image in a view that mixes: 1 where none is mixed in."""
    if view.mixing is None:
        return [1.0] * len(hashes_N)
    floats_NW = _floats(view, view.mixing, hashes_N)
    mixes = [draw_mix(view.mixing, row) for row in floats_NW.tolist()]
    return [1.0 if mix is None else mix.lam for mix in mixes]


def _resized_crop_box(
    floats: Sequence[float], height: int, width: int, operation: RandomResizedCrop
) -> Box:
    """Draw a box of random area and aspect, as timm and torchvision do."""
    scale, ratio = operation.scale, operation.ratio
    low, high = _logarithms(ratio)
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


@lru_cache(maxsize=64)
def _logarithms(ratio: tuple[float, float]) -> tuple[float, float]:
    return log2(ratio[0]), log2(ratio[1])


def _largest_central_box(height: int, width: int, ratio: tuple[float, float]) -> Box:
    """Return the largest central box whose aspect is in the range."""
    box_height, box_width = height, width
    if width / height < ratio[0]:
        box_height = max(1, round(width / ratio[0]))
    elif width / height > ratio[1]:
        box_width = max(1, round(height * ratio[1]))
    return Box((height - box_height) // 2, (width - box_width) // 2, box_height, box_width)
