"""Weighted sums of objectives, and their configuration."""

from __future__ import annotations

from contextlib import contextmanager
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from pydantic import model_validator
from torch import nn

from logitcache.batch import Outputs
from logitcache.config import Config
from logitcache.errors import UsageError, nearest
from logitcache.objectives.adversarial import Adversarial, AdversarialConfig
from logitcache.objectives.aliases import ALIASES, long_forms
from logitcache.objectives.episode import Episode, EpisodeConfig
from logitcache.objectives.feature_match import Match, MatchConfig
from logitcache.objectives.fuse import Fuse, FuseConfig
from logitcache.objectives.gap import Gap, GapConfig
from logitcache.objectives.gate import Gate, GateConfig
from logitcache.objectives.label import Label, LabelConfig
from logitcache.objectives.projector import share_projectors
from logitcache.objectives.prototypes.assign import Assign, AssignConfig
from logitcache.objectives.prototypes.attend import Attend, AttendConfig
from logitcache.objectives.reconstruct import Reconstruct, ReconstructConfig
from logitcache.objectives.relational import Relation, RelationConfig
from logitcache.objectives.route import Route, RouteConfig
from logitcache.objectives.soft import Soft, SoftConfig
from logitcache.objectives.split import Split, SplitConfig
from logitcache.objectives.term import Needs, TermConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

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
    "route": Route,
    "adversarial": Adversarial,
    "fuse": Fuse,
    "assign": Assign,
    "attend": Attend,
    "episode": Episode,
    "reconstruct": Reconstruct,
    "gate": Gate,
    "gap": Gap,
}


class Objective(Protocol):
    """A loss as a function of outputs of the student and targets.

    An objective with parameters of its own, such as a projector, is also a
    :class:`torch.nn.Module` with a method ``fit(outputs, targets)``. It is called once, before the
    first step, with examples of one row; it creates the parameters and raises an error for shapes
    that do not fit.
    """

    def __call__(self, outputs: Outputs, targets: TargetBatch) -> Tensor:
        """Return the loss, a scalar."""
        ...


@runtime_checkable
class CountsRows(Protocol):
    """An objective that averages over some rows of a batch only; others average over all rows."""

    def count(self, targets: TargetBatch) -> Tensor:
        """Return the number of rows of a batch that it averages over, a scalar."""
        ...


class ObjectiveConfig(Config):
    """One term of the loss: a mapping with one key, such as ``{soft: {temperature: 2}}``.

    Attributes:
        label: Cross-entropy with the labels.
        soft: Knowledge distillation: Kullback-Leibler divergence from teachers.
        split: Separate terms for target and non-target classes: NKD or DKD.
        match: Feature distillation: activations of a student layer against those of a teacher.
        relation: Relational distillation: relations of activations against those of a teacher.
        route: Feature distillation with learned pairs of layers: attention to layers of a teacher.
        adversarial: Feature distillation by a discriminator between student and teacher.
        fuse: Distillation from a classifier over the features of student and teachers together.
        assign: Feature distillation by assignment to prototypes of a teacher.
        attend: Distillation from a classifier of features that attend to prototypes of a teacher.
        episode: Few-shot episodes: class means of one half of a batch classify the other half.
        reconstruct: Masked autoencoder: pixels of dropped patches, by a decoder.
        gate: Feature distillation with a learned gate for each pair of layers.
        gap: Gap between the losses of two parts of an image set.
    """

    label: LabelConfig | None = None
    soft: SoftConfig | None = None
    split: SplitConfig | None = None
    match: MatchConfig | None = None
    relation: RelationConfig | None = None
    route: RouteConfig | None = None
    adversarial: AdversarialConfig | None = None
    fuse: FuseConfig | None = None
    assign: AssignConfig | None = None
    attend: AttendConfig | None = None
    episode: EpisodeConfig | None = None
    reconstruct: ReconstructConfig | None = None
    gate: GateConfig | None = None
    gap: GapConfig | None = None

    @property
    def name(self) -> str:
        """Name of the term: the key of the mapping."""
        (name,) = self.model_fields_set
        return name

    @property
    def term(self) -> TermConfig:
        """Settings of the term: the value of the mapping."""
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
    """Weighted sum of terms; a module with the parameters of all terms.

    Args:
        terms: Name, configuration and objective of every term.
    """

    def __init__(self, terms: Sequence[tuple[str, TermConfig, Objective]]) -> None:
        super().__init__()
        self._weights = {name: config.weight for name, config, _ in terms}
        self._configs = {name: config for name, config, _ in terms}
        self._terms = {name: objective for name, _, objective in terms}
        for name, objective in self._terms.items():
            if isinstance(objective, nn.Module):
                self.add_module(name, objective)
        self.needs = reduce(or_, (config.all_needs for _, config, _ in terms), Needs())

    def fit(self, outputs: Outputs, targets: TargetBatch) -> None:
        """Create the parameters of all terms, and check that outputs and targets fit.

        Args:
            outputs: Example of outputs of the student, one row.
            targets: Example of targets, one row.
        """
        for name, objective in self._terms.items():
            fit = getattr(objective, "fit", None)
            if fit is not None:
                with _located(name, self._configs[name]):
                    fit(outputs, targets)
        share_projectors(self._terms.values())

    def check(self, outputs: Outputs, targets: TargetBatch) -> None:
        """Check that the terms on features can be computed for outputs of other shapes.

        Args:
            outputs: Example of outputs of the student, one row.
            targets: Example of targets, one row.

        Raises:
            UsageError: The shapes do not fit each other.
        """
        for name, objective in self._terms.items():
            if hasattr(objective, "fit"):
                with _located(name, self._configs[name]):
                    objective(outputs, targets)

    def forward(
        self, outputs: Outputs | Tensor, targets: TargetBatch, progress: float = 1.0
    ) -> Tensor:
        """Return the weighted sum, a scalar; see :meth:`total`."""
        return self.total(self.parts(outputs, targets), progress)

    def parts(self, outputs: Outputs | Tensor, targets: TargetBatch) -> dict[str, Tensor]:
        """Return the unweighted loss of each term, by name."""
        student = Outputs.of(outputs)
        return {name: self._loss(name, student, targets) for name in self._terms}

    def check_logits(self, outputs: Outputs, targets: TargetBatch) -> None:
        """Check that the terms without parameters, which are those on logits, can be computed.

        Args:
            outputs: Example of outputs of the student, one row for each view of a batch.
            targets: Example of targets, as many rows.

        Raises:
            UsageError: The logits do not fit the targets.
        """
        for name, objective in self._terms.items():
            if not hasattr(objective, "fit"):
                self._loss(name, outputs, targets)

    def _loss(self, name: str, student: Outputs, targets: TargetBatch) -> Tensor:
        """Return the unweighted loss of a term on the rows of its views and parts."""
        with _located(name, self._configs[name]):
            index, own = self._rows(name, targets)
            if not len(own):
                return self._zero(name, student)
            return self._terms[name](student if index is None else student.take(index), own)

    def _zero(self, name: str, student: Outputs) -> Tensor:
        """Return the loss of a term in a batch that has no row of its parts.

        It depends on all outputs, and on the parameters of the term, as with rows: processes
        exchange gradients of the same parameters in every step.
        """
        term = self._terms[name]
        own = term.parameters() if isinstance(term, nn.Module) else ()
        held = (each.values for each in student.features.values())
        return torch.stack([tensor.sum() * 0.0 for tensor in (student.logits, *held, *own)]).sum()

    def counts(self, targets: TargetBatch) -> dict[str, int | Tensor]:
        """Return the number of rows that each term averages over, by name."""
        found: dict[str, int | Tensor] = {}
        for name, objective in self._terms.items():
            _, own = self._rows(name, targets)
            found[name] = objective.count(own) if isinstance(objective, CountsRows) else len(own)
        return found

    def _rows(self, name: str, targets: TargetBatch) -> tuple[Tensor | None, TargetBatch]:
        """Return the rows that a term is computed on (None for all), and their targets."""
        views, parts = self._configs[name].views, self._configs[name].parts
        index = None if views is None else targets.rows_of_views(views)
        own = targets if views is None else targets.of_views(views)
        if parts is not None:
            rows = own.rows_of_parts(parts)
            index, own = rows if index is None else index[rows], own.take(rows)
        return index, own

    def total(self, parts: dict[str, Tensor], progress: float = 1.0) -> Tensor:
        """Return the weighted sum of :meth:`parts`.

        Args:
            parts: Unweighted losses by name of the term.
            progress: Share of all steps that are done, for scheduled weights.
        """
        weighted = (self._weights[name].at(progress) * part for name, part in parts.items())
        first, *rest = weighted
        return sum(rest, start=first)


@contextmanager
def _located(name: str, config: TermConfig) -> Iterator[None]:
    """Name the term, and the head it is computed on, in errors that have no place yet."""
    try:
        yield
    except UsageError as error:
        if error.where is None:
            head = getattr(config, "head", None)
            error.where = f"objectives.{name}" + (f", head {head}" if head else "")
        raise


def build_objective(configs: Sequence[ObjectiveConfig]) -> WeightedSum:
    """Build the weighted sum of terms.

    Args:
        configs: Configuration of each term.

    Returns:
        A function of outputs of the student (its logits (B, C), or
        :class:`~logitcache.batch.Outputs`) and a :class:`~logitcache.batch.TargetBatch` that
        returns a scalar.
    """
    names: list[str] = []
    for config in configs:  # terms of the same kind are numbered: soft, soft_2
        taken = sum(name.partition("_")[0] == config.name for name in names)
        names.append(f"{config.name}_{taken + 1}" if taken else config.name)
    return WeightedSum(
        [
            (name, config.term, TERMS[config.name](config.term))
            for name, config in zip(names, configs, strict=True)
        ]
    )
