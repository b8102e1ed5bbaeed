"""Weighted sums of objectives, and their configuration."""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from pydantic import model_validator
from torch import nn

from logitcache.batch import Outputs
from logitcache.config import Config
from logitcache.errors import nearest
from logitcache.objectives.aliases import ALIASES, long_forms
from logitcache.objectives.feature_match import Match, MatchConfig
from logitcache.objectives.label import Label, LabelConfig
from logitcache.objectives.relational import Relation, RelationConfig
from logitcache.objectives.soft import Soft, SoftConfig
from logitcache.objectives.split import Split, SplitConfig
from logitcache.objectives.term import Needs, TermConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from logitcache.batch import TargetBatch

__all__ = [
    "TERMS",
    "CountsRows",
    "Objective",
    "ObjectiveConfig",
    "WeightedSum",
    "build_objective",
]

TERMS: dict[str, Callable[[Any], Objective]] = {
    "label": Label,
    "soft": Soft,
    "split": Split,
    "match": Match,
    "relation": Relation,
}


class Objective(Protocol):
    """A function of outputs of the student and the targets; it knows no loader, no teacher.

    One that learns something itself, a projector say, is a :class:`torch.nn.Module` too, and has a
    method ``fit(outputs, targets)`` that is called once, before the first step, with examples of
    one row: it makes its parameters, and refuses what does not fit.
    """

    def __call__(self, outputs: Outputs, targets: TargetBatch) -> Tensor:
        """Return the loss, a scalar."""
        ...


@runtime_checkable
class CountsRows(Protocol):
    """An objective that averages over some of the rows only; without it, over all of a batch."""

    def count(self, targets: TargetBatch) -> Tensor:
        """Return over how many rows of a batch it averages, a scalar."""
        ...


class ObjectiveConfig(Config):
    """One term: a mapping with one key, as ``{soft: {temperature: 2}}``.

    Attributes:
        label: Cross-entropy with the labels.
        soft: Divergence from teachers.
        split: Separate terms for target and non-target classes: NKD or DKD.
        match: Feature distillation: activations of a student layer against those of a teacher.
        relation: Relational distillation: relations of activations against those of a teacher.
    """

    label: LabelConfig | None = None
    soft: SoftConfig | None = None
    split: SplitConfig | None = None
    match: MatchConfig | None = None
    relation: RelationConfig | None = None

    @property
    def name(self) -> str:
        """The key."""
        (name,) = self.model_fields_set
        return name

    @property
    def term(self) -> TermConfig:
        """What is below the key."""
        term: TermConfig = getattr(self, self.name)
        return term

    @model_validator(mode="before")
    @classmethod
    def _in_long_form(cls, value: object) -> object:
        """Accept a bare name and an alias; drop the unused terms of a saved configuration."""
        if isinstance(value, dict) and len(value) > 1:
            value = {name: options for name, options in value.items() if options is not None}
        first, *others = long_forms(value)
        if others:
            raise ValueError(f"{value!r} consists of {1 + len(others)} terms: give it in a list")
        if isinstance(first, str):
            first = {first: {}}
        if not isinstance(first, dict):
            return first
        known = [*cls.model_fields, *ALIASES]
        for name in first:
            if name not in known:
                raise ValueError(f"unknown objective {name!r}: {nearest(str(name), known)}")
        if len(first) != 1:
            names = ", ".join(cls.model_fields)
            raise ValueError(f"an objective is a mapping with one key of {names}")
        return {name: {} if options is None else options for name, options in first.items()}


class WeightedSum(nn.Module):
    """Terms by name, with their weights.

    A module, whose parameters are those of its terms that have any.

    Args:
        terms: (name, configuration, objective) of every term.
    """

    def __init__(self, terms: Sequence[tuple[str, TermConfig, Objective]]) -> None:
        super().__init__()
        self._weights = {name: config.weight for name, config, _ in terms}
        self._views = {name: config.views for name, config, _ in terms}
        self._terms = {name: objective for name, _, objective in terms}
        for name, objective in self._terms.items():
            if isinstance(objective, nn.Module):
                self.add_module(name, objective)
        self.needs = reduce(or_, (config.needs for _, config, _ in terms), Needs())

    def fit(self, outputs: Outputs, targets: TargetBatch) -> None:
        """Let terms make their parameters, and refuse what does not fit.

        Args:
            outputs: An example of outputs of the student, of one row.
            targets: An example of what it is compared with, of one row.
        """
        for objective in self._terms.values():
            fit = getattr(objective, "fit", None)
            if fit is not None:
                fit(outputs, targets)

    def forward(
        self, outputs: Outputs | Tensor, targets: TargetBatch, progress: float = 1.0
    ) -> Tensor:
        """Return the weighted sum, a scalar; see :meth:`total`."""
        return self.total(self.parts(outputs, targets), progress)

    def parts(self, outputs: Outputs | Tensor, targets: TargetBatch) -> dict[str, Tensor]:
        """Return each term unweighted, by name."""
        answered = Outputs.of(outputs)
        found = {}
        for name, objective in self._terms.items():
            names = self._views[name]
            if names is None:
                found[name] = objective(answered, targets)
            else:
                index = targets.rows_of_views(names)
                found[name] = objective(answered.take(index), targets.take(index))
        return found

    def counts(self, targets: TargetBatch) -> dict[str, int | Tensor]:
        """Return over how many rows each term averages, by name."""
        found: dict[str, int | Tensor] = {}
        for name, objective in self._terms.items():
            names = self._views[name]
            own = targets if names is None else targets.take(targets.rows_of_views(names))
            found[name] = objective.count(own) if isinstance(objective, CountsRows) else len(own)
        return found

    def total(self, parts: dict[str, Tensor], progress: float = 1.0) -> Tensor:
        """Return the weighted sum of :meth:`parts`.

        Args:
            parts: Terms by name.
            progress: Share of all steps that are done, for weights that change.
        """
        weighted = (self._weights[name].at(progress) * part for name, part in parts.items())
        first, *rest = weighted
        return sum(rest, start=first)


def build_objective(configs: Sequence[ObjectiveConfig]) -> WeightedSum:
    """Build the sum that configurations describe.

    Args:
        configs: One per term.

    Returns:
        A function of outputs of the student (its logits (B, C), or
        :class:`~logitcache.batch.Outputs`) and a :class:`~logitcache.batch.TargetBatch` that
        returns a scalar.
    """
    names: list[str] = []
    for config in configs:
        taken = sum(name.partition("_")[0] == config.name for name in names)
        names.append(f"{config.name}_{taken + 1}" if taken else config.name)
    return WeightedSum(
        [
            (name, config.term, TERMS[config.name](config.term))
            for name, config in zip(names, configs, strict=True)
        ]
    )
