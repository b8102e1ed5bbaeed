"""A sum of objectives, as configurations write it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, Self

from pydantic import model_validator

from logitcache.config import Config
from logitcache.objectives.label import Label, LabelConfig
from logitcache.objectives.soft import Soft, SoftConfig
from logitcache.objectives.split import Split, SplitConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from logitcache.batch import TargetBatch

__all__ = ["Objective", "ObjectiveConfig", "WeightedSum", "build_objective"]


class Objective(Protocol):
    """A function of the student's logits and the targets; it knows no loader and no teacher."""

    def __call__(self, logits_BC: Tensor, targets: TargetBatch) -> Tensor:
        """Return the loss, a scalar in nats."""
        ...


class ObjectiveConfig(Config):
    """One term: a mapping with one key, as ``{soft: {temperature: 2}}``.

    Attributes:
        label: Cross-entropy with the labels.
        soft: Divergence from teachers.
        split: The label's class and all others asked apart: NKD or DKD.
    """

    label: LabelConfig | None = None
    soft: SoftConfig | None = None
    split: SplitConfig | None = None

    @property
    def asks_teachers(self) -> bool:
        """Whether it needs what teachers said."""
        return self.label is None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if len(self.model_fields_set) != 1:
            raise ValueError("an objective is a mapping with one key: label, soft or split")
        return self

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: object) -> object:
        return {value: {}} if isinstance(value, str) else value


class WeightedSum:
    """Terms by name, with their weights.

    Args:
        terms: (name, weight, objective) of every term.
    """

    def __init__(self, terms: Sequence[tuple[str, float, Objective]]) -> None:
        self._terms = list(terms)

    def __call__(self, logits_BC: Tensor, targets: TargetBatch) -> Tensor:
        """Return the weighted sum, a scalar."""
        return self.total(self.parts(logits_BC, targets))

    @property
    def teachers(self) -> list[str] | None:
        """Names of the teachers that are asked for; None for all there are."""
        asking = [term for _, _, term in self._terms if isinstance(term, Soft | Split)]
        if any(term.config.teachers is None for term in asking):
            return None
        return sorted({name for term in asking for name in term.config.teachers or {}})

    def parts(self, logits_BC: Tensor, targets: TargetBatch) -> dict[str, Tensor]:
        """Return each term unweighted, by name."""
        return {name: objective(logits_BC, targets) for name, _, objective in self._terms}

    def total(self, parts: dict[str, Tensor]) -> Tensor:
        """Return the weighted sum of :meth:`parts`."""
        first, *rest = (weight * parts[name] for name, weight, _ in self._terms)
        return sum(rest, start=first)


def build_objective(configs: Sequence[ObjectiveConfig]) -> WeightedSum:
    """Build the sum that configurations describe.

    Args:
        configs: One per term.

    Returns:
        A function of the student's logits (B, C) and a :class:`~logitcache.batch.TargetBatch` that
        returns a scalar, in nats.
    """
    terms: list[tuple[str, float, Objective]] = []
    for config in configs:
        if config.soft is not None:
            terms.append((_unused("soft", terms), config.soft.weight, Soft(config.soft)))
        if config.split is not None:
            terms.append((_unused("split", terms), config.split.weight, Split(config.split)))
        if config.label is not None:
            terms.append((_unused("label", terms), config.label.weight, Label(config.label)))
    return WeightedSum(terms)


def _unused(name: str, terms: Sequence[tuple[str, float, Objective]]) -> str:
    """Return the name, numbered if it is taken."""
    taken = sum(known.partition("_")[0] == name for known, _, _ in terms)
    return f"{name}_{taken + 1}" if taken else name
