"""What can be done to an image, as a recipe says it: every number, nothing implied.

An operation is data. What is drawn for it and what it does to pixels is in the module of its kind
(``geometry``, ``randaugment``, ``colour``, ``erase``, ``mix``); ``docs/views.md`` is normative.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, TypeAdapter

__all__ = [
    "CROPS",
    "FILL",
    "OPERATIONS",
    "BorderCrop",
    "CentralCrop",
    "ColorJitter",
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
    "VerticalFlip",
    "operation_from_json",
    "operation_to_json",
]

FILL = (124, 116, 104)
"""What is behind an image: ImageNet's mean colour in whole levels, as timm fills."""

Probability = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Level = Annotated[int, Field(ge=0, le=255)]
Colour = tuple[Level, Level, Level]


@dataclass(frozen=True)
class RandomResizedCrop:
    """A box of random area and aspect, resized to the square that is wanted.

    Attributes:
        scale: Range of the box's share of the image's area.
        ratio: Range of the box's width over its height.
    """

    name: ClassVar[str] = "random_resized_crop"
    scale: tuple[Share, Share]
    ratio: tuple[Positive, Positive]


@dataclass(frozen=True)
class CentralCrop:
    """The central square whose side is a share of the image's shorter side.

    Attributes:
        crop_pct: The share, as in timm: the shorter side is resized to floor(size / crop_pct).
    """

    name: ClassVar[str] = "central_crop"
    crop_pct: Share


@dataclass(frozen=True)
class SquashCrop:
    """The image squashed to a square of side floor(size / crop_pct), then its centre."""

    name: ClassVar[str] = "squash_crop"
    crop_pct: Share


@dataclass(frozen=True)
class BorderCrop:
    """The longer side resized to floor(size / crop_pct), the rest filled, then the centre."""

    name: ClassVar[str] = "border_crop"
    crop_pct: Share
    fill: Colour = FILL


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
        weights: How likely each is, drawn without replacement; None: all alike, with replacement.
        layers: How many are drawn.
        magnitude: Their strength; 10 is full.
        std: Standard deviation of the strength; None draws it uniformly from 0 to ``magnitude``.
        upper: Largest strength.
        p: Probability with which a drawn operation is applied.
        fill: What comes in from outside the image.
    """

    name: ClassVar[str] = "rand_augment"
    names: tuple[str, ...]
    weights: tuple[Positive, ...] | None
    layers: Annotated[int, Field(ge=1, le=16)]
    magnitude: Annotated[float, Field(ge=0, le=30)]
    std: NotNegative | None
    upper: Annotated[float, Field(gt=0, le=30)]
    p: Probability
    fill: Colour = FILL


@dataclass(frozen=True)
class ColorJitter:
    """Brightness, contrast, saturation and hue, in random order, as torchvision's.

    Attributes:
        brightness: Range of the factor.
        contrast: Range of the factor.
        saturation: Range of the factor.
        hue: Largest turn of the hue either way, in turns.
        p: Probability of all of it.
    """

    name: ClassVar[str] = "color_jitter"
    brightness: tuple[NotNegative, NotNegative]
    contrast: tuple[NotNegative, NotNegative]
    saturation: tuple[NotNegative, NotNegative]
    hue: Annotated[float, Field(ge=0, le=0.5)]
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
        p: Its probability.
    """

    name: ClassVar[str] = "blur"
    radius: tuple[Positive, Positive]
    p: Probability


@dataclass(frozen=True)
class RandomErasing:
    """Boxes of the rendered square are painted over.

    Attributes:
        p: Probability that there is any.
        area: Range of the share of all boxes together.
        aspect: Range of a box's height over its width.
        count: Most boxes; from one to this many.
        mode: ``const`` paints ``fill``, ``rand`` one normal colour per box, ``pixel`` noise.
        fill: Mean colour.
        deviation: Standard deviation of ``rand`` and ``pixel``, in levels.
        size: The only side at which ``pixel`` noise can be rendered, in pixels.
    """

    name: ClassVar[str] = "random_erasing"
    p: Probability
    area: tuple[Share, Share] = (0.02, 1 / 3)
    aspect: tuple[Positive, Positive] = (0.3, 1 / 0.3)
    count: Annotated[int, Field(ge=1, le=64)] = 1
    mode: Literal["const", "rand", "pixel"] = "const"
    fill: Colour = FILL
    deviation: tuple[Positive, Positive, Positive] = (58.395, 57.12, 57.375)
    size: Annotated[int, Field(ge=1, le=65536)] | None = None


@dataclass(frozen=True)
class Mixing:
    """Another image of the unit is mixed in, by mixup or cutmix.

    Attributes:
        mixup_alpha: Of the Beta distribution of mixup's share; 0: no mixup.
        cutmix_alpha: Of the Beta distribution of cutmix's share; 0: no cutmix.
        cutmix_minmax: Range of the box's sides instead of a Beta distribution.
        p: Probability that anything is mixed.
        switch: Probability of cutmix where both are on.
    """

    name: ClassVar[str] = "mix"
    mixup_alpha: Annotated[float, Field(ge=0, le=16)]
    cutmix_alpha: Annotated[float, Field(ge=0, le=16)]
    cutmix_minmax: tuple[Share, Share] | None
    p: Probability
    switch: Probability


@dataclass(frozen=True)
class Rot90:
    """A number of quarter turns, counter-clockwise."""

    name: ClassVar[str] = "rot90"
    turns: Annotated[int, Field(ge=1, le=3)]


@dataclass(frozen=True)
class LowRes:
    """The detail of a square whose side is ``factor`` times shorter, at the size asked for."""

    name: ClassVar[str] = "lowres"
    factor: Annotated[float, Field(gt=1, le=64)]


@dataclass(frozen=True)
class Mask:
    """Cells of a grid over the square are painted over.

    Attributes:
        ratio: Share of the cells.
        grid: Cells along a side.
        fill: What they are painted with.
    """

    name: ClassVar[str] = "mask"
    ratio: Annotated[float, Field(gt=0, lt=1)]
    grid: Annotated[int, Field(ge=2, le=64)] = 14
    fill: Colour = FILL


CROPS = (RandomResizedCrop, CentralCrop, SquashCrop, BorderCrop)
"""Operations that make a square; the first one of every recipe."""

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
)

OPERATIONS: dict[str, type[Operation]] = {kind.name: kind for kind in Operation.__args__}
"""Every operation by its name in a recipe."""

_ADAPTERS: dict[str, TypeAdapter[Any]] = {
    name: TypeAdapter(kind) for name, kind in OPERATIONS.items()
}


def operation_to_json(operation: Operation) -> dict[str, Any]:
    """Return an operation as JSON values."""
    values = {n: list(v) if isinstance(v, tuple) else v for n, v in asdict(operation).items()}
    return {"op": operation.name, **values}


def operation_from_json(values: dict[str, Any]) -> Operation:
    """Read an operation.

    Raises:
        ValueError: It is malformed, pydantic's ValidationError included.
        KeyError: There is no such operation.
    """
    kind = OPERATIONS[values["op"]]
    fields = {name: value for name, value in values.items() if name != "op"}
    unknown = fields.keys() - kind.__dataclass_fields__.keys()
    if unknown:
        raise ValueError(f"{kind.name} has no {', '.join(sorted(unknown))}")
    operation: Operation = _ADAPTERS[kind.name].validate_python(fields)
    return operation
