"""Parameters of a view of one image, after all random draws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from logitcache.views.operations import BorderCrop, CentralCrop, SquashCrop, operation_to_json

if TYPE_CHECKING:
    from typing import TypeAlias

__all__ = ["Box", "Crop", "Mix", "Parameters", "Step"]

Fractions: TypeAlias = "tuple[float, float, float, float]"


@dataclass(frozen=True)
class Box:
    """A box of whole source pixels; (top, left) is inside, (bottom, right) outside."""

    top: int
    left: int
    height: int
    width: int


Crop = Box | CentralCrop | SquashCrop | BorderCrop


@dataclass(frozen=True)
class Step:
    """A step of the processing of the rendered square.

    Attributes:
        name: Name of the step, a key of the tables of ``render``.
        values: Its numbers; places and sides in fractions of the square.
    """

    name: str
    values: tuple[float, ...] = ()


@dataclass(frozen=True)
class Mix:
    """Parameters of a mix with a partner.

    Attributes:
        lam: Share of the row's own image.
        box: Top, left, bottom and right of the partner's part, in fractions of the square; None
            where the two are blended.
    """

    lam: float
    box: Fractions | None = None


@dataclass(frozen=True)
class Parameters:
    """All parameters of one image of one view, at any size.

    Attributes:
        crop: The box to resize, or a crop that depends on the size.
        steps: Steps on the square, in order.
        mix: Mix with the partner's square; None without one.
        after: Steps on the mixed square, in order.
    """

    crop: Crop
    steps: tuple[Step, ...] = ()
    mix: Mix | None = None
    after: tuple[Step, ...] = ()

    @property
    def flip(self) -> bool:
        """Whether left and right are mirrored."""
        return Step("flip") in self.steps

    def to_json(self) -> dict[str, Any]:
        """Return the parameters as JSON values."""
        crop = self.crop
        return {
            "crop": [crop.top, crop.left, crop.height, crop.width]
            if isinstance(crop, Box)
            else operation_to_json(crop),
            "steps": [[step.name, *step.values] for step in self.steps],
            "mix": None
            if self.mix is None
            else {"lam": self.mix.lam, "box": None if self.mix.box is None else [*self.mix.box]},
            "after": [[step.name, *step.values] for step in self.after],
        }
