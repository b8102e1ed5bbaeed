"""Operations of a recipe, with every number explicit.

An operation is data. Its random draws and its effect on pixels are in the module of its kind
(``geometry``, ``randaugment``, ``color``, ``erase``, ``mix``); ``docs/views.md`` is normative.

The limits of all numbers are written here; ``docs/views.md`` lists them. Within them no library
crashes, and memory and time are bounded (``tests/views/test_limits.py``).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import AfterValidator, Field, Strict, TypeAdapter

from logitcache.views.recipe import DROP, UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "ALPHA",
    "BOXES",
    "CROPS",
    "CROP_SHARE",
    "FILL",
    "MAX_HUE",
    "MAX_SIDE",
    "OPERATIONS",
    "PROBABILITY",
    "RATIO",
    "SHARE",
    "SIDE",
    "STRENGTH",
    "BorderCrop",
    "CentralCrop",
    "ColorJitter",
    "Drop",
    "Grey",
    "HorizontalFlip",
    "LowRes",
    "Mask",
    "Mixing",
    "Operation",
    "RandAugment",
    "RandomBlur",
    "RandomErasing",
    "RandomResizedCrop",
    "Rot90",
    "SquashCrop",
    "Unknown",
    "VerticalFlip",
    "operation_from_json",
    "operation_to_json",
]

FILL = (124, 116, 104)
"""Fill color: the mean color of ImageNet in whole levels, as in timm."""
MAX_SIDE = 4096
"""Largest side of a rendered view, in pixels."""
MAX_HUE = 0.5
"""Largest rotation of the hue in either direction, in turns."""
_LONGEST = 64  # characters of a name that a message repeats


def _within(low: float, high: float) -> Any:
    return Field(ge=low, le=high, allow_inf_nan=False)


PROBABILITY = _within(0, 1)
SHARE = Field(gt=0, le=1, allow_inf_nan=False)
RATIO = _within(1e-290, 1e290)  # areas are multiplied and divided by it, and stay finite
CROP_SHARE = _within(1e-6, 1)  # sides of the resized image are exact in double precision
STRENGTH = _within(0, 1e38)  # Pillow blends in single precision
BOXES = Field(ge=1, le=64)
ALPHA = _within(0, 16)
SIDE = Field(ge=1, le=MAX_SIDE)


def _ascending(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError(f"a range from {pair[0]} to {pair[1]}: expected the smaller number first")
    return pair


# Strict: a text or a truth value is not accepted as a number.
_Number: TypeAlias = Annotated[float, Strict()]
_Whole: TypeAlias = Annotated[int, Strict()]
_Ascending = AfterValidator(_ascending)

Probability = Annotated[_Number, PROBABILITY]
Share = Annotated[_Number, SHARE]
Shares = Annotated[tuple[Share, Share], _Ascending]
CropShare = Annotated[_Number, CROP_SHARE]
Ratio = Annotated[_Number, RATIO]
Aspect = Annotated[_Number, _within(0.001, 1000)]
Factor = Annotated[_Number, STRENGTH]
Factors = Annotated[tuple[Factor, Factor], _Ascending]
Radius = Annotated[_Number, _within(0.01, 224)]
Alpha = Annotated[_Number, ALPHA]
Deviation = Annotated[_Number, _within(0.001, 1000)]
Weight = Annotated[_Number, _within(0.001, 1000)]
Level = Annotated[_Whole, Field(ge=0, le=255)]
Color = tuple[Level, Level, Level]
PolicyName = Literal[
    "AutoContrast",
    "Brightness",
    "BrightnessIncreasing",
    "Color",
    "ColorIncreasing",
    "Contrast",
    "ContrastIncreasing",
    "Desaturate",
    "Equalize",
    "GaussianBlur",
    "Invert",
    "Posterize",
    "PosterizeIncreasing",
    "Rotate",
    "Sharpness",
    "SharpnessIncreasing",
    "ShearX",
    "ShearY",
    "Solarize",
    "SolarizeAdd",
    "SolarizeIncreasing",
    "TranslateXRel",
    "TranslateYRel",
]
"""Operations of RandAugment, by timm's names; :data:`.LEVELS` defines them."""


@dataclass(frozen=True)
class RandomResizedCrop:
    """A box of random area and aspect, resized to the requested square.

    Attributes:
        scale: Range of the box's share of the image's area.
        ratio: Range of the box's width over its height.
    """

    name: ClassVar[str] = "random_resized_crop"
    scale: Shares
    ratio: Annotated[tuple[Ratio, Ratio], _Ascending]


@dataclass(frozen=True)
class CentralCrop:
    """The central square whose side is a share of the image's shorter side.

    Attributes:
        crop_pct: The share, as in timm: the shorter side is resized to floor(size / crop_pct).
    """

    name: ClassVar[str] = "central_crop"
    crop_pct: CropShare


@dataclass(frozen=True)
class SquashCrop:
    """The image squashed to a square of side floor(size / crop_pct), then its center."""

    name: ClassVar[str] = "squash_crop"
    crop_pct: CropShare


@dataclass(frozen=True)
class BorderCrop:
    """The longer side resized to floor(size / crop_pct), the rest filled, then the center."""

    name: ClassVar[str] = "border_crop"
    crop_pct: CropShare
    fill: Color = FILL


@dataclass(frozen=True)
class HorizontalFlip:
    """A left-right flip with probability ``p``."""

    name: ClassVar[str] = "horizontal_flip"
    p: Probability


@dataclass(frozen=True)
class VerticalFlip:
    """A top-bottom flip with probability ``p``."""

    name: ClassVar[str] = "vertical_flip"
    p: Probability


@dataclass(frozen=True)
class RandAugment:
    """A few operations out of a set, each with a random magnitude.

    Attributes:
        names: The set, by timm's names.
        weights: Weight of each, drawn without replacement; None: equal ones, with replacement.
        layers: Number of drawn operations.
        magnitude: Their strength; 10 is the full one.
        std: Standard deviation of the strength; None draws it uniformly from 0 to ``magnitude``.
        upper: Largest strength.
        p: Probability with which a drawn operation is applied.
        fill: Color of pixels from outside of the image.
    """

    name: ClassVar[str] = "rand_augment"
    names: Annotated[tuple[PolicyName, ...], Field(min_length=1, max_length=32)]
    weights: Annotated[tuple[Weight, ...], Field(min_length=1, max_length=32)] | None
    layers: Annotated[_Whole, Field(ge=1, le=16)]
    magnitude: Annotated[_Number, _within(0, 30)]
    std: Annotated[_Number, _within(0, 100)] | None
    upper: Annotated[_Number, _within(0.001, 30)]
    p: Probability
    fill: Color = FILL

    def __post_init__(self) -> None:
        if self.weights is None:
            return
        if len(self.weights) != len(self.names):
            raise ValueError(f"{len(self.weights)} weights for {len(self.names)} names")
        if self.layers > len(self.names):
            raise ValueError(
                f"{self.layers} layers are more than the {len(self.names)} weighted names"
            )


@dataclass(frozen=True)
class ColorJitter:
    """Brightness, contrast, saturation and hue, in random order, as torchvision's.

    Attributes:
        brightness: Range of the factor.
        contrast: Range of the factor.
        saturation: Range of the factor.
        hue: Largest rotation of the hue in either direction, in turns.
        p: Probability of the jitter.
    """

    name: ClassVar[str] = "color_jitter"
    brightness: Factors
    contrast: Factors
    saturation: Factors
    hue: Annotated[_Number, _within(0, MAX_HUE)]
    p: Probability


@dataclass(frozen=True)
class Grey:
    """Three equal channels with probability ``p``."""

    name: ClassVar[str] = "grey"
    p: Probability


@dataclass(frozen=True)
class RandomBlur:
    """A Gaussian blur.

    Attributes:
        radius: Range of its standard deviation, in 224ths of the side.
        p: Probability of the blur.
    """

    name: ClassVar[str] = "blur"
    radius: Annotated[tuple[Radius, Radius], _Ascending]
    p: Probability


@dataclass(frozen=True)
class RandomErasing:
    """Boxes of the rendered square are painted over.

    Attributes:
        p: Probability of any box.
        area: Range of the total area of all boxes, as a share of the square.
        aspect: Range of a box's height over its width.
        count: Largest number of boxes; at least one is drawn.
        mode: ``const`` paints ``fill``, ``rand`` one normal color per box, ``pixel`` noise.
        fill: Mean color.
        deviation: Standard deviation of ``rand`` and ``pixel``, in levels.
        size: The only side at which ``pixel`` noise can be rendered, in pixels.
    """

    name: ClassVar[str] = "random_erasing"
    p: Probability
    area: Shares = (0.02, 1 / 3)
    aspect: Annotated[tuple[Aspect, Aspect], _Ascending] = (0.3, 1 / 0.3)
    count: Annotated[_Whole, BOXES] = 1
    mode: Literal["const", "rand", "pixel"] = "const"
    fill: Color = FILL
    deviation: tuple[Deviation, Deviation, Deviation] = (58.395, 57.12, 57.375)
    size: Annotated[_Whole, SIDE] | None = None

    def __post_init__(self) -> None:
        if (self.mode == "pixel") != (self.size is not None):
            raise ValueError(f"mode {self.mode} with size {self.size}: only mode pixel has a size")


@dataclass(frozen=True)
class Mixing:
    """Another image of the unit is mixed in, by mixup or cutmix.

    Attributes:
        mixup_alpha: Parameter of the Beta distribution of mixup's share; 0: no mixup.
        cutmix_alpha: Parameter of the Beta distribution of cutmix's share; 0: no cutmix.
        cutmix_minmax: Range of the box's sides instead of a Beta distribution.
        p: Probability that anything is mixed.
        switch: Probability of cutmix where both are on.
    """

    name: ClassVar[str] = "mix"
    mixup_alpha: Alpha
    cutmix_alpha: Alpha
    cutmix_minmax: Shares | None
    p: Probability
    switch: Probability

    def __post_init__(self) -> None:
        if self.cutmix_minmax is None and self.mixup_alpha == self.cutmix_alpha == 0:
            raise ValueError("neither mixup nor cutmix is used: both parameters are 0")


@dataclass(frozen=True)
class Rot90:
    """A number of quarter turns, counter-clockwise."""

    name: ClassVar[str] = "rot90"
    turns: Annotated[_Whole, Field(ge=1, le=3)]


@dataclass(frozen=True)
class LowRes:
    """The detail of a square whose side is ``factor`` times shorter, at the requested size."""

    name: ClassVar[str] = "lowres"
    factor: Annotated[_Number, Field(gt=1, le=64, allow_inf_nan=False)]


@dataclass(frozen=True)
class Mask:
    """Cells of a grid over the square are painted over.

    Attributes:
        ratio: Share of the cells.
        grid: Cells along a side.
        fill: Their color.
    """

    name: ClassVar[str] = "mask"
    ratio: Annotated[_Number, Field(gt=0, lt=1, allow_inf_nan=False)]
    grid: Annotated[_Whole, Field(ge=2, le=64)] = 14
    fill: Color = FILL


@dataclass(frozen=True)
class Drop:
    """Patches of the square that a network is run without; pixels do not change.

    They are the cells that :class:`Mask` of the same ratio and grid paints over, if it paints over
    any and not all.

    Attributes:
        ratio: Share of the patches.
        grid: Patches along a side.
    """

    name: ClassVar[str] = DROP
    ratio: Annotated[_Number, Field(gt=0, lt=1, allow_inf_nan=False)]
    grid: Annotated[_Whole, Field(ge=2, le=64)] = 14

    @property
    def dropped(self) -> int:
        """Number of patches that are dropped: at least one, and not all."""
        return min(max(1, round(self.ratio * self.grid**2)), self.grid**2 - 1)


@dataclass(frozen=True)
class Unknown:
    """Pixels that no recipe describes: outputs were computed elsewhere and imported.

    It is the only operation of its view. Students see other views of the same images.
    """

    name: ClassVar[str] = UNKNOWN


CROPS = (RandomResizedCrop, CentralCrop, SquashCrop, BorderCrop, Unknown)
"""Operations that result in a square; the first one of every recipe."""

Operation = (
    RandomResizedCrop
    | CentralCrop
    | SquashCrop
    | BorderCrop
    | HorizontalFlip
    | VerticalFlip
    | RandAugment
    | ColorJitter
    | Grey
    | RandomBlur
    | RandomErasing
    | Mixing
    | Rot90
    | LowRes
    | Mask
    | Drop
    | Unknown
)

_KINDS: dict[str, type[Operation]] = {kind.name: kind for kind in Operation.__args__}

OPERATIONS = {name: kind for name, kind in _KINDS.items() if kind is not Unknown}
"""Every operation that is rendered, by its name in a recipe."""

_ADAPTERS: dict[str, TypeAdapter[Any]] = {name: TypeAdapter(kind) for name, kind in _KINDS.items()}


def operation_to_json(operation: Operation) -> dict[str, Any]:
    """Return an operation as JSON values."""
    values = {n: list(v) if isinstance(v, tuple) else v for n, v in asdict(operation).items()}
    return {"op": operation.name, **values}


def operation_from_json(values: Mapping[str, Any]) -> Operation:
    """Parse an operation.

    Raises:
        ValueError: It is unknown, malformed or out of range; pydantic's ValidationError is one.
    """
    name = values.get("op")
    if not isinstance(name, str) or name not in _KINDS:
        raise ValueError(f"unknown operation {str(name)[:_LONGEST]!r}")
    kind = _KINDS[name]
    given = {field: value for field, value in values.items() if field != "op"}
    unknown = sorted(given.keys() - {field.name for field in fields(kind)})
    if unknown:
        raise ValueError(f"operation {name} has no parameter {unknown[0][:_LONGEST]!r}")
    operation: Operation = _ADAPTERS[name].validate_python(given)
    return operation
