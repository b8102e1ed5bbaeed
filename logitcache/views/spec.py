"""What a view is: a named, frozen recipe that says everything and depends on nothing else.

The id of a view is a digest of the recipe, so equal ids mean equal views, in any cache.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from logitcache.config import Config
from logitcache.errors import CacheError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "ALGORITHM",
    "CentralCrop",
    "HorizontalFlip",
    "Interpolation",
    "RandomResizedCrop",
    "View",
    "ViewsConfig",
    "parse_view",
]

ALGORITHM = 1
"""Version of the view algorithm written down in ``docs/views.md``."""

_MAX_DRAW = 2**32 - 1

Interpolation = Literal["bicubic", "bilinear"]
_Seed = Annotated[int, Field(ge=0, lt=2**64)]
_Fraction = Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True)
class RandomResizedCrop:
    """A box of random area and aspect, resized to the square that is wanted.

    Attributes:
        scale: Range of the box's share of the image's area.
        ratio: Range of the box's width over its height.
    """

    name: ClassVar[str] = "random_resized_crop"
    scale: tuple[float, float]
    ratio: tuple[float, float]


@dataclass(frozen=True)
class CentralCrop:
    """The central square whose side is a share of the image's shorter side.

    Attributes:
        crop_pct: The share, as in timm: the shorter side is resized to floor(size / crop_pct).
    """

    name: ClassVar[str] = "central_crop"
    crop_pct: float


@dataclass(frozen=True)
class HorizontalFlip:
    """A left-right flip.

    Attributes:
        p: Its probability.
    """

    name: ClassVar[str] = "horizontal_flip"
    p: float


Operation = RandomResizedCrop | CentralCrop | HorizontalFlip

_OPERATIONS: dict[str, Callable[..., Operation]] = {
    kind.name: kind for kind in (RandomResizedCrop, CentralCrop, HorizontalFlip)
}


@dataclass(frozen=True)
class View:
    """One way to look at every image of a set.

    Attributes:
        operations: What is done to the image, in order; the first one makes it a square.
        seed: First word of the key of its draws.
        draw: Which draw, 0 <= draw < 2^32; 0 for views that draw nothing.
        interpolation: How pixels are resized.
        base: Id of the view it is derived from, whose draws it shares.
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
            "operations": [_operation_to_json(operation) for operation in self.operations],
            "seed": self.seed,
            "size": {"rule": "square", "interpolation": self.interpolation},
        }

    @property
    def id(self) -> str:
        """``v`` and 16 hex digits of the sha256 of the canonical JSON of the recipe."""
        canonical = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return "v" + hashlib.sha256(canonical.encode()).hexdigest()[:16]

    @property
    def is_random(self) -> bool:
        """Whether anything in it is drawn."""
        return any(not isinstance(operation, CentralCrop) for operation in self.operations)


class ViewsConfig(Config):
    """Which views, in the words of timm's augmentation options.

    Attributes:
        count: How many random views; draws 1 to ``count``.
        eval: Whether the ``eval`` view is among them, as the first one.
        seed: Seed of the draws.
        scale: Range of the crop's share of the image's area.
        ratio: Range of the crop's width over its height.
        hflip: Probability of a left-right flip.
        interpolation: ``bicubic`` or ``bilinear``.
        crop_pct: Share of the shorter side that the ``eval`` crop keeps.
    """

    count: int = Field(default=1, ge=0, le=_MAX_DRAW)
    eval: bool = False
    seed: _Seed = 0
    scale: tuple[_Fraction, _Fraction] = (0.08, 1.0)
    ratio: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (3 / 4, 4 / 3)
    hflip: float = Field(default=0.5, ge=0, le=1)
    interpolation: Interpolation = "bicubic"
    crop_pct: _Fraction = 0.875

    @model_validator(mode="after")
    def _ranges_ascend(self) -> Self:
        for name in ("scale", "ratio"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} goes from {low} to {high}: give the smaller number first")
        if self.count == 0 and not self.eval:
            raise ValueError("no view is asked for: set count above 0 or eval to true")
        return self

    def random_view(self, draw: int) -> View:
        """Return the random view of one draw, 1 <= draw < 2^32."""
        crop = RandomResizedCrop(self.scale, self.ratio)
        flips = (HorizontalFlip(self.hflip),) if self.hflip > 0 else ()
        return View((crop, *flips), self.seed, draw, self.interpolation)

    def eval_view(self) -> View:
        """Return the view to evaluate with, which draws nothing."""
        return View((CentralCrop(self.crop_pct),), interpolation=self.interpolation)

    def views(self) -> list[View]:
        """Return all the views, ``eval`` first."""
        random = [self.random_view(draw) for draw in range(1, self.count + 1)]
        return [self.eval_view(), *random] if self.eval else random


def parse_view(values: dict[str, Any], where: str) -> View:
    """Read a recipe out of a cache.

    Raises:
        CacheError: The recipe needs another version of the view algorithm, or is malformed.
    """
    if values.get("algorithm") != ALGORITHM:
        raise CacheError(
            "this view was drawn by another version of the view algorithm",
            where=where,
            expected=f"algorithm {ALGORITHM}",
            got=values.get("algorithm"),
            hint="update logitcache",
        )
    try:
        return View(
            operations=tuple(_parse_operation(operation) for operation in values["operations"]),
            seed=values["seed"],
            draw=values["draw"],
            interpolation=values["size"]["interpolation"],
            base=values["base"],
        )
    except (KeyError, TypeError) as error:
        raise CacheError("malformed view", where=where, got=repr(error)) from None


def _operation_to_json(operation: Operation) -> dict[str, Any]:
    values = {n: list(v) if isinstance(v, tuple) else v for n, v in asdict(operation).items()}
    return {"op": operation.name, **values}


def _parse_operation(values: dict[str, Any]) -> Operation:
    fields = {n: tuple(v) if isinstance(v, list) else v for n, v in values.items() if n != "op"}
    operation: Operation = _OPERATIONS[values["op"]](**fields)
    return operation
