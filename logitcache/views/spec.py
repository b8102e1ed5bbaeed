"""Specification of a view: a frozen recipe with an id.

The id of a view is a digest of the recipe, so equal ids mean equal views, in any cache.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from logitcache.config import Config
from logitcache.errors import CacheError, UsageError
from logitcache.views.notation import parse_derived, parse_rand_augment
from logitcache.views.operations import (
    ALPHA,
    BOXES,
    CROP_SHARE,
    CROPS,
    MAX_HUE,
    MAX_SIDE,
    PROBABILITY,
    RATIO,
    SHARE,
    SIDE,
    STRENGTH,
    BorderCrop,
    CentralCrop,
    ColorJitter,
    Drop,
    Grey,
    HorizontalFlip,
    LowRes,
    Mask,
    Mixing,
    Operation,
    RandomBlur,
    RandomErasing,
    RandomResizedCrop,
    Rot90,
    SquashCrop,
    Unknown,
    VerticalFlip,
    operation_from_json,
    operation_to_json,
)
from logitcache.views.recipe import Interpolation, RecipeFields, recipe_id

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ALGORITHM", "Interpolation", "View", "ViewsConfig", "parse_view"]

ALGORITHM = 1
"""Version of the view algorithm of ``docs/views.md``."""

_MOST_VIEWS = 65536  # of a cache
_LONGEST = 64  # characters of a value that a message repeats
_FIXED = (CentralCrop, SquashCrop, BorderCrop, Rot90, LowRes)

_Fraction = Annotated[float, SHARE]
_Probability = Annotated[float, PROBABILITY]
_Ratio = Annotated[float, RATIO]
_Strength = Annotated[float, STRENGTH]
_Alpha = Annotated[float, ALPHA]


@dataclass(frozen=True)
class View:
    """Recipe of a view of every image of a set.

    Attributes:
        operations: Operations in order; the first one results in a square.
        seed: First word of the key of its draws.
        draw: Number of the draw, 0 <= draw < 2^32; 0 for views without random draws.
        interpolation: Interpolation of resizing.
        base: Id of the view that it is derived from, whose draws it shares.
        algorithm: Version of the algorithm that turns words into parameters.
    """

    operations: tuple[Operation, ...]
    seed: int = 0
    draw: int = 0
    interpolation: Interpolation = "bicubic"
    base: str | None = None
    algorithm: int = ALGORITHM

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as JSON values."""
        return {
            "algorithm": self.algorithm,
            "base": self.base,
            "draw": self.draw,
            "operations": [operation_to_json(operation) for operation in self.operations],
            "seed": self.seed,
            "size": {"rule": "square", "interpolation": self.interpolation},
        }

    @property
    def id(self) -> str:
        """``v`` and 16 hex digits of the sha256 of the canonical JSON of the recipe."""
        return recipe_id(self.to_json())

    @property
    def is_random(self) -> bool:
        """Whether any of its operations is random."""
        return any(not isinstance(operation, _FIXED) for operation in self.operations)

    @property
    def is_known(self) -> bool:
        """Whether its pixels are known; outputs of other views were imported."""
        return not any(isinstance(operation, Unknown) for operation in self.operations)

    @property
    def mixing(self) -> Mixing | None:
        """The operation that mixes in another image of the unit; None without one."""
        return next((o for o in self.operations if isinstance(o, Mixing)), None)

    @property
    def dropping(self) -> Drop | None:
        """The operation that drops patches; None if networks see all of them."""
        return next((o for o in self.operations if isinstance(o, Drop)), None)

    @property
    def unmixed(self) -> View:
        """This view without its mix and later operations; the view itself if it does not mix.

        Its pixels are those of an image before the mix, since the draws are shared.
        """
        if self.mixing is None:
            return self
        before = self.operations[: self.operations.index(self.mixing)]
        return replace(self, operations=before)

    @classmethod
    def unknown(cls, number: int) -> View:
        """Return the view with a number from 1 whose pixels are not known."""
        return cls((Unknown(),), draw=number)

    def derived(self, operation: Operation) -> View:
        """Return this view with one more operation; the draws are shared."""
        return View(
            (*self.operations, operation),
            seed=self.seed,
            draw=self.draw,
            interpolation=self.interpolation,
            base=self.id,
        )

    def check_sizes(self, sizes: Sequence[int]) -> None:
        """Refuse sizes at which the view cannot be rendered.

        Raises:
            UsageError: A size is out of range, or the view has pixel noise, which exists at one
                size only.
        """
        for size in sizes:
            if not 1 <= size <= MAX_SIDE:
                raise UsageError(
                    "views cannot be rendered at this size",
                    expected=f"sides of 1 to {MAX_SIDE} pixels",
                    got=f"{size} pixels",
                )
        for operation in self.operations:
            if isinstance(operation, RandomErasing) and operation.size is not None:
                wrong = [size for size in sizes if size != operation.size]
                if wrong:
                    raise UsageError(
                        "pixel noise can be rendered at one size only",
                        where=f"view {self.id}, random_erasing",
                        expected=f"{operation.size} pixels",
                        got=f"{wrong[0]} pixels",
                        hint="use re_mode const or rand, or one size for teachers and students",
                    )


class ViewsConfig(Config):
    """Settings of the views, named as timm's augmentation options.

    Attributes:
        count: Number of random views, with the draws 1 to ``count``.
        eval: Whether to add the ``eval`` view as the first one.
        seed: Seed of the draws.
        scale: Range of the crop's share of the image's area.
        ratio: Range of the crop's width over its height.
        hflip: Probability of a left-right flip.
        vflip: Probability of a top-bottom flip.
        auto_augment: RandAugment in timm's notation, ``rand-m9-n2-mstd0.5-inc1``.
        color_jitter: One strength for brightness, contrast and saturation, or three strengths, or
            four with that of the hue.
        color_jitter_prob: Probability of the color jitter; 1 by default.
        grayscale_prob: Probability of grayscale.
        gaussian_blur_prob: Probability of a blur.
        re_prob: Probability of random erasing.
        re_mode: ``const``, ``rand``, or ``pixel`` where teachers and students have one size.
        re_count: Largest number of boxes to erase.
        re_size: That size in pixels, for ``pixel`` only.
        mixup_alpha: Parameter of mixup's Beta distribution; 0 for no mixup.
        cutmix_alpha: Parameter of cutmix's Beta distribution; 0 for no cutmix.
        cutmix_minmax: Range of the sides of cutmix's box, instead of ``cutmix_alpha``.
        mix_prob: Probability that an image is mixed.
        switch_prob: Probability of cutmix where both mixup and cutmix are used.
        patch_drop_rate: Share of the patches of every random view that networks are run without.
        patch_drop_grid: Patches along a side, for ``patch_drop_rate`` above 0.
        derive: Views to derive from every random one: ``rot90(1)``, ``lowres(4)``, ``mask(0.6)``.
        interpolation: ``bicubic`` or ``bilinear``.
        crop_pct: Share of the shorter side that the ``eval`` crop keeps.
        crop_mode: ``center``, ``squash`` or ``border``, as timm crops for ``eval``.
    """

    count: int = Field(default=1, ge=0, le=2**32 - 1)
    eval: bool = False
    seed: Annotated[int, Field(ge=0, le=2**64 - 1)] = 0
    scale: tuple[_Fraction, _Fraction] = (0.08, 1.0)
    ratio: tuple[_Ratio, _Ratio] = (3 / 4, 4 / 3)
    hflip: _Probability = 0.5
    vflip: _Probability = 0.0
    auto_augment: str | None = None
    color_jitter: tuple[_Strength, ...] | None = None
    color_jitter_prob: _Probability = 1.0
    grayscale_prob: _Probability = 0.0
    gaussian_blur_prob: _Probability = 0.0
    re_prob: _Probability = 0.0
    re_mode: Literal["const", "rand", "pixel"] = "const"
    re_count: Annotated[int, BOXES] = 1
    re_size: Annotated[int, SIDE] | None = None
    mixup_alpha: _Alpha = 0.0
    cutmix_alpha: _Alpha = 0.0
    cutmix_minmax: tuple[_Fraction, _Fraction] | None = None
    mix_prob: _Probability = 1.0
    switch_prob: _Probability = 0.5
    patch_drop_rate: Annotated[float, Field(ge=0, lt=1)] = 0.0
    patch_drop_grid: Annotated[int, Field(ge=2, le=64)] = 14
    derive: list[str] = Field(default_factory=list)
    interpolation: Interpolation = "bicubic"
    crop_pct: Annotated[float, CROP_SHARE] = 0.875
    crop_mode: Literal["center", "squash", "border"] = "center"

    @field_validator("color_jitter", mode="before")
    @classmethod
    def _one_strength_is_three(cls, value: object) -> object:
        return (value, value, value) if isinstance(value, int | float) else value

    @field_validator("color_jitter")
    @classmethod
    def _three_or_four(cls, value: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if value is not None and len(value) not in (3, 4):
            raise ValueError(
                "color_jitter has to be one number, three numbers, or four with the hue"
            )
        if value is not None and len(value) == 4 and value[3] > MAX_HUE:
            raise ValueError(f"the hue of color_jitter has to be at most {MAX_HUE} turns")
        return value

    @field_validator("auto_augment")
    @classmethod
    def _readable(cls, value: str | None) -> str | None:
        if value is not None:
            parse_rand_augment(value)
        return value

    @field_validator("derive")
    @classmethod
    def _derivable(cls, value: list[str]) -> list[str]:
        for text in value:
            parse_derived(text)
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name in ("scale", "ratio", "cutmix_minmax"):
            low, high = getattr(self, name) or (0, 0)
            if low > high:
                raise ValueError(
                    f"{name} is a range from {low} to {high}: expected the smaller number first"
                )
        if self.count == 0 and not self.eval:
            raise ValueError("no view is configured: set count above 0 or eval to true")
        if (self.re_mode == "pixel") != (self.re_size is not None):
            raise ValueError(
                "re_mode pixel and re_size have to be set together: noise exists at one size only"
            )
        return self

    def random_view(self, draw: int) -> View:
        """Return the random view of one draw, 1 <= draw < 2^32."""
        crop = RandomResizedCrop(self.scale, self.ratio)
        drops = [Drop(self.patch_drop_rate, self.patch_drop_grid)] if self.patch_drop_rate else []
        changes = (*self._flips(), *self._colors(), *self._erasing(), *self._mixing())
        operations = (crop, *changes, *drops)
        return View(operations, self.seed, draw, self.interpolation)

    def eval_view(self) -> View:
        """Return the view for evaluation, which has no random draws."""
        crops: dict[str, Operation] = {
            "center": CentralCrop(self.crop_pct),
            "squash": SquashCrop(self.crop_pct),
            "border": BorderCrop(self.crop_pct),
        }
        return View((crops[self.crop_mode],), interpolation=self.interpolation)

    def views(self) -> list[View]:
        """Return all views: ``eval``, then each random view with those derived from it."""
        wanted = self.eval + self.count * (1 + len(self.derive))
        if wanted > _MOST_VIEWS:
            raise UsageError(
                "more views are configured than a cache can have",
                where="views.count",
                expected=f"at most {_MOST_VIEWS}, including derived ones",
                got=wanted,
            )
        found = [self.eval_view()] if self.eval else []
        for draw in range(1, self.count + 1):
            base = self.random_view(draw)
            found += [base, *(base.derived(parse_derived(text)) for text in self.derive)]
        return found

    def _flips(self) -> list[Operation]:
        flips: list[Operation] = []
        if self.hflip > 0:
            flips.append(HorizontalFlip(self.hflip))
        if self.vflip > 0:
            flips.append(VerticalFlip(self.vflip))
        return flips

    def _colors(self) -> list[Operation]:
        colors: list[Operation] = []
        if self.auto_augment is not None:
            colors.append(parse_rand_augment(self.auto_augment))
        if self.color_jitter is not None and self.color_jitter_prob > 0:
            ranges = [(max(0.0, 1.0 - strength), 1.0 + strength) for strength in self.color_jitter]
            hue, p = self.color_jitter[3] if ranges[3:] else 0.0, self.color_jitter_prob
            colors.append(ColorJitter(ranges[0], ranges[1], ranges[2], hue, p))
        if self.grayscale_prob > 0:
            colors.append(Grey(self.grayscale_prob))
        if self.gaussian_blur_prob > 0:
            colors.append(RandomBlur((0.1, 2.0), self.gaussian_blur_prob))
        return colors

    def _erasing(self) -> list[Operation]:
        if self.re_prob == 0:
            return []
        return [
            RandomErasing(self.re_prob, count=self.re_count, mode=self.re_mode, size=self.re_size)
        ]

    def _mixing(self) -> list[Operation]:
        boxed = self.cutmix_alpha > 0 or self.cutmix_minmax is not None
        if self.mix_prob == 0 or not (boxed or self.mixup_alpha > 0):
            return []
        return [
            Mixing(
                self.mixup_alpha,
                self.cutmix_alpha,
                self.cutmix_minmax,
                self.mix_prob,
                self.switch_prob,
            )
        ]


def parse_view(values: object, where: str) -> View:
    """Parse the recipe of a view.

    Raises:
        CacheError: The recipe has another version of the view algorithm, or is malformed.
    """
    version = values.get("algorithm") if isinstance(values, dict) else ALGORITHM
    if version != ALGORITHM or isinstance(version, bool):
        raise CacheError(
            "a view has another version of the view algorithm than this logitcache",
            where=where,
            expected=f"algorithm {ALGORITHM}",
            got=str(version)[:_LONGEST],
            hint="install a newer version: pip install --upgrade logitcache",
        )
    try:
        return _parsed(values)
    except ValueError as error:
        got = _first_fault(error) if isinstance(error, ValidationError) else str(error)
        raise CacheError("the recipe of a view is malformed", where=where, got=got) from None


def _parsed(values: object) -> View:
    recipe = RecipeFields.model_validate(values)
    view = View(
        operations=tuple(operation_from_json(operation) for operation in recipe.operations),
        seed=recipe.seed,
        draw=recipe.draw,
        interpolation=recipe.size.interpolation,
        base=recipe.base,
    )
    _check_order(view.operations)
    if recipe_id(values) != view.id:
        raise ValueError("it lacks a key or number of the complete recipe of this view")
    if view.base is not None and view.base not in _bases(view.operations[:-1], view):
        raise ValueError(
            f"base {view.base} is not the id of this view without {view.operations[-1].name}"
        )
    return view


def _bases(operations: tuple[Operation, ...], view: View) -> set[str]:
    """Return the possible ids of a view with these operations, which may be derived itself."""
    if not operations:
        return set()
    alone = replace(view, operations=operations, base=None).id
    if alone == view.base:  # as configurations derive views
        return {alone}
    bases = _bases(operations[:-1], view)
    return {alone, *(replace(view, operations=operations, base=base).id for base in bases)}


def _first_fault(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part)[:_LONGEST] for part in first["loc"])
    return f"{place}: {first['msg']}" if place else first["msg"].removeprefix("Value error, ")


def _check_order(operations: tuple[Operation, ...]) -> None:
    """Refuse recipes with a repeated operation, or without a single crop as the first one."""
    names = [operation.name for operation in operations]
    if len(set(names)) < len(names):
        raise ValueError(f"an operation is repeated: {', '.join(names)}")
    crops = [isinstance(operation, CROPS) for operation in operations]
    if crops[:1] != [True] or sum(crops) > 1:
        raise ValueError(f"expected a single crop as the first operation, not {', '.join(names)}")
    if Unknown.name in names and len(names) > 1:
        raise ValueError(f"{Unknown.name} is the only operation of a view, not {', '.join(names)}")
    mixing = names.index(Mixing.name) if Mixing.name in names else len(names)
    late = (Rot90, LowRes, Mask, Drop)
    if not all(isinstance(operation, late) for operation in operations[mixing + 1 :]):
        expected = "rot90, lowres, mask and drop"
        raise ValueError(f"expected only {expected} after mix, not {', '.join(names)}")
