"""RandAugment as in timm.

The level functions are those of ``timm.data.auto_augment``; ``docs/views.md`` lists them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from logitcache.views.arithmetic import normal_quantile
from logitcache.views.parameters import Step

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from logitcache.views.operations import RandAugment

__all__ = ["LEVELS", "NORMAL", "SETS", "WORDS_PER_LAYER", "draw_rand_augment"]

WORDS_PER_LAYER = 4  # operation, whether it is applied, strength, sign
_FULL = 10.0

NORMAL = (
    "AutoContrast",
    "Equalize",
    "Invert",
    "Rotate",
    "Posterize",
    "Solarize",
    "SolarizeAdd",
    "Color",
    "Contrast",
    "Brightness",
    "Sharpness",
    "ShearX",
    "ShearY",
    "TranslateXRel",
    "TranslateYRel",
)
_GROWING = {"Posterize", "Solarize", "Color", "Contrast", "Brightness", "Sharpness"}

SETS: dict[str, dict[str, float | None]] = {
    "normal": dict.fromkeys(NORMAL),
    "increasing": {f"{n}Increasing" if n in _GROWING else n: None for n in NORMAL},
    "3a": dict.fromkeys(("SolarizeIncreasing", "Desaturate", "GaussianBlur")),
    "3aw": {
        "SolarizeIncreasing": 6.0,
        "Desaturate": 6.0,
        "GaussianBlur": 6.0,
        "Rotate": 3.0,
        "ShearX": 2.0,
        "ShearY": 2.0,
        "PosterizeIncreasing": 1.0,
        "AutoContrast": 1.0,
        "ColorIncreasing": 1.0,
        "SharpnessIncreasing": 1.0,
        "ContrastIncreasing": 1.0,
        "BrightnessIncreasing": 1.0,
        "Equalize": 1.0,
        "Invert": 1.0,
    },
    "weights": {
        "Rotate": 3.0,
        "ShearX": 2.0,
        "ShearY": 2.0,
        "TranslateXRel": 1.0,
        "TranslateYRel": 1.0,
        "ColorIncreasing": 0.25,
        "SharpnessIncreasing": 0.25,
        "AutoContrast": 0.25,
        "SolarizeIncreasing": 0.05,
        "SolarizeAdd": 0.05,
        "ContrastIncreasing": 0.05,
        "BrightnessIncreasing": 0.05,
        "Equalize": 0.05,
        "PosterizeIncreasing": 0.05,
        "Invert": 0.05,
    },
}
"""timm's sets of operations and, where they are weighted, their weights."""


def _signed(step: str, full: float) -> Callable[[float, bool], tuple[str, float]]:
    return lambda level, down: (step, -(level * full) if down else level * full)


def _factor(step: str) -> Callable[[float, bool], tuple[str, float]]:
    return lambda level, _: (step, level * 1.8 + 0.1)


def _growing_factor(step: str) -> Callable[[float, bool], tuple[str, float]]:
    def at(level: float, down: bool) -> tuple[str, float]:
        change = level * 0.9
        return step, max(0.1, 1.0 + (-change if down else change))

    return at


LEVELS: dict[str, Callable[[float, bool], tuple[str, float] | str]] = {
    "AutoContrast": lambda _, __: "autocontrast",
    "Equalize": lambda _, __: "equalize",
    "Invert": lambda _, __: "invert",
    "Rotate": _signed("rotate", 30.0),
    "Posterize": lambda level, _: ("posterize", int(level * 4)),
    "PosterizeIncreasing": lambda level, _: ("posterize", 4 - int(level * 4)),
    "Solarize": lambda level, _: ("solarize", min(256, int(level * 256))),
    "SolarizeIncreasing": lambda level, _: ("solarize", 256 - min(256, int(level * 256))),
    "SolarizeAdd": lambda level, _: ("solarize_add", min(128, int(level * 110))),
    "Color": _factor("color"),
    "ColorIncreasing": _growing_factor("color"),
    "Contrast": _factor("contrast"),
    "ContrastIncreasing": _growing_factor("contrast"),
    "Brightness": _factor("brightness"),
    "BrightnessIncreasing": _growing_factor("brightness"),
    "Sharpness": _factor("sharpness"),
    "SharpnessIncreasing": _growing_factor("sharpness"),
    "ShearX": _signed("shear_x", 0.3),
    "ShearY": _signed("shear_y", 0.3),
    "TranslateXRel": _signed("translate_x", 0.45),
    "TranslateYRel": _signed("translate_y", 0.45),
    "Desaturate": lambda level, _: ("color", 1.0 - max(0.5, min(1.0, 0.5 + 0.5 * level))),
    "GaussianBlur": lambda level, _: ("blur", max(0.1, min(2.0, 0.1 + 1.9 * level))),
}
"""Functions of strength / 10 and whether it is negative, by timm's name; they return a step."""

_FILLING = {"rotate", "shear_x", "shear_y", "translate_x", "translate_y"}


def draw_rand_augment(operation: RandAugment, floats: Sequence[float]) -> list[Step]:
    """Return the steps of one image.

    Args:
        operation: The recipe.
        floats: :data:`WORDS_PER_LAYER` unit floats for every layer.
    """
    left = list(operation.names)
    weights = list(operation.weights or [1.0] * len(left))
    steps = []
    for layer in range(operation.layers):
        start = WORDS_PER_LAYER * layer
        which, whether, strength, way = floats[start : start + WORDS_PER_LAYER]
        index = _choose(weights, which)
        name = left[index]
        if operation.weights is not None:
            del left[index], weights[index]
        if whether < operation.p:
            found = LEVELS[name](_level(operation, strength), way >= 0.5)
            steps.append(_step(found, operation))
    return steps


def _choose(weights: list[float], u: float) -> int:
    """Return the first index whose cumulated weight exceeds u of the total."""
    total = 0.0
    for weight in weights:  # not sum(), which compensates for rounding from Python 3.12 on
        total += weight
    target, cumulated = u * total, 0.0
    for index, weight in enumerate(weights):
        cumulated += weight
        if cumulated > target:
            return index
    return len(weights) - 1


def _level(operation: RandAugment, u: float) -> float:
    """Return the strength as a share of the full one, clipped as in timm."""
    magnitude = operation.magnitude
    if operation.std is None:
        magnitude = u * magnitude
    elif operation.std > 0:
        magnitude = magnitude + operation.std * normal_quantile(u)
    return max(0.0, min(magnitude, operation.upper)) / _FULL


def _step(found: tuple[str, float] | str, operation: RandAugment) -> Step:
    if isinstance(found, str):
        return Step(found)
    name, value = found
    return Step(name, (value, *operation.fill) if name in _FILLING else (value,))
