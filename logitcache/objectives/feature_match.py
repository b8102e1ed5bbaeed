"""Feature distillation: activations of a student layer against those of a teacher.

Its options cover the mimicking and generation losses of ViTKD (Yang et al., 2022), the distance of
last tokens of WeCoLoRA (Grigore et al., WACV 2025), NFD (2022), DPK (2023), the hierarchical
context loss (Chen et al., "Distilling Knowledge via Knowledge Review", CVPR 2021), TransKD (2022)
and DMAE's distance of unit vectors.

Shapes: B batch, N positions, D channels of the student, E of the teacher.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from logitcache.config import Former
from logitcache.errors import UsageError
from logitcache.objectives.alignment import (
    Pair,
    aligned,
    as_map,
    as_tokens,
    cached_features,
    on_own_grids,
)
from logitcache.objectives.distance import Metric, Normalize, Reduction, difference, standardized
from logitcache.objectives.fitted import created, try_on
from logitcache.objectives.projector import (
    PROJECTORS,
    ProjectorConfig,
    build_projector,
    check_channels,
    projected,
)
from logitcache.objectives.term import PairConfig, PairsTermConfig

if TYPE_CHECKING:
    from logitcache.batch import Features, Outputs, TargetBatch

__all__ = ["Match", "MatchConfig"]


class MatchConfig(PairsTermConfig):
    """Loss between activations of a student layer and those of a teacher.

    Attributes:
        weight: Weight of this term in the sum.
        pairs: Pairs of teacher and student layers, from shallow to deep. A single pair may be
            written without this key, as teacher, tap and student, or against and student.
        metric: Elementwise distance: ``l1``, ``l2``, ``huber`` or ``cosine``.
        reduction: ``mean`` over all values; or ``sum`` over the values of a row, and the mean over
            rows.
        normalize: ``l2`` for unit vectors of channels (an energy map as a whole); ``standardize``
            for mean 0 and standard deviation 1 of every channel over the map; ``none``.
        projector: Trained map from the student's channels to the teacher's, one for each pair or,
            for ``fusion``, one for all.
        prefix: Whether class tokens and registers are compared, if both have the same number.
        levels: Sides of the grids to which both are averaged and compared again, largest first.
    """

    metric: Metric = "l2"
    reduction: Reduction = "mean"
    normalize: Normalize = "none"
    former: ClassVar[Former] = Former(
        keys={"normalise": "normalize"}, values={"normalize": {"standardise": "standardize"}}
    )
    projector: ProjectorConfig = ProjectorConfig()
    prefix: bool = True
    levels: list[PositiveInt] = Field(default_factory=list)

    @property
    def asks_maps(self) -> bool:
        """Whether patches are compared as a map, without prefix tokens."""
        whole = self.normalize == "standardize" or bool(self.levels)
        return whole or PROJECTORS[self.projector.kind].whole_maps

    @property
    def needs_whole_batch(self) -> bool:
        """Whether the projector compares the rows of a batch."""
        return PROJECTORS[self.projector.kind].compares_rows(self.projector)


class Match(nn.Module):
    """Distance between a student's features and a teacher's.

    ::

        mean  L = sum_i c_i mean_e d(P(s)_ie, t_ie) / sum_i c_i, mean over rows
        sum   L = sum_i c_i sum_e d(P(s)_ie, t_ie), mean over rows

    with s the student (N, D) at the teacher's positions, t the teacher (N, E), P the projector and
    d the metric. c_i is the number of positions that position i represents: 1, or P / n for each
    patch if n of P are cached, so that the expected loss over draws is that of all patches; in a
    generator c_i is 1 at hidden positions and 0 elsewhere. ViTKD's published weights, 3e-5 and 6e-6
    (its beta / lambda), are for sums.

    The losses of several pairs are added.

    With levels, the loss of each level that is smaller than the map is added with half the weight
    of the level before, and the sum is divided by the sum of the weights. As in the code of the
    paper, levels that are skipped do not halve the weight.

    Args:
        config: The layers, and how they are compared.
    """

    def __init__(self, config: MatchConfig) -> None:
        super().__init__()
        self.config = config
        self.projector: nn.Module | None = None

    def fit(self, outputs: Outputs, targets: TargetBatch) -> None:
        """Create the projector, and check that the activations can be compared.

        Args:
            outputs: Example of outputs of the student, one row.
            targets: Example of targets, one row.

        Raises:
            UsageError: The shapes do not fit each other, or the options do not fit the features.
        """
        for pair in self.config.pairs:
            self._check(cached_features(targets, pair.features), pair)
        pairs = self._pairs(outputs, targets)
        self.projector = build_projector(self.config.projector, pairs, self._where)
        try_on(self, outputs, targets)

    def forward(self, outputs: Outputs, targets: TargetBatch) -> Tensor:
        """Return the loss, a scalar."""
        projector = created(self.projector, "projector", self._where)
        pairs = self._pairs(outputs, targets)
        losses = [
            self._loss(student, counts, pair, standardized=teacher.standardized)
            for (student, counts), pair, teacher in zip(
                projected(self.config.projector, projector, pairs),
                pairs,
                self._teachers(targets),
                strict=True,
            )
        ]
        return sum(losses[1:], start=losses[0])

    @property
    def _where(self) -> str:
        return "objectives.match of " + ", ".join(pair.features for pair in self.config.pairs)

    def _teachers(self, targets: TargetBatch) -> list[Features]:
        return [cached_features(targets, pair.features) for pair in self.config.pairs]

    def _pairs(self, outputs: Outputs, targets: TargetBatch) -> list[Pair]:
        own_grid = PROJECTORS[self.config.projector.kind].own_grid
        prefix = self.config.prefix and not self.config.asks_maps
        align = on_own_grids if own_grid else partial(aligned, prefix=prefix)
        return [
            align(outputs.tap(pair.held), teacher, where=self._where)
            for pair, teacher in zip(self.config.pairs, self._teachers(targets), strict=True)
        ]

    def _loss(
        self, projected_BND: Tensor, counts: Tensor, pair: Pair, *, standardized: bool
    ) -> Tensor:
        """Return the loss of one pair, a scalar.

        Args:
            projected_BND: The projected student.
            counts: Number of positions that each position represents.
            pair: The pair.
            standardized: Whether the cached map was standardized, which is not done twice.
        """
        student = self._normalized(projected_BND)
        wanted = pair.teacher if standardized else self._normalized(pair.teacher)
        loss = self._reduced(student, wanted, counts)
        total = 1.0
        smaller = [
            side for side in self.config.levels if pair.grid is not None and side < pair.grid
        ]
        for index, side in enumerate(smaller, start=1):
            share = 0.5**index
            ones = counts.new_ones(1, side**2)
            here, there = _pooled(student, pair.grid, side), _pooled(wanted, pair.grid, side)
            loss = loss + share * self._reduced(here, there, ones)
            total += share
        return loss / total

    def _normalized(self, values_BND: Tensor) -> Tensor:
        if self.config.normalize == "standardize":
            return standardized(values_BND)
        if self.config.normalize == "l2":
            axes = (1, 2) if values_BND.shape[2] == 1 else 2
            norm: Tensor = torch.linalg.vector_norm(values_BND, dim=axes, keepdim=True)
            return values_BND / norm.clamp(min=1e-12)
        return values_BND

    def _reduced(self, student_BND: Tensor, teacher_BND: Tensor, counts: Tensor) -> Tensor:
        each_BND = difference(self.config.metric, student_BND, teacher_BND)
        if self.config.reduction == "sum":
            return (each_BND.sum(2) * counts).sum() / len(each_BND)
        weights_BN = counts.expand(len(each_BND), -1)
        return (each_BND.mean(2) * weights_BN).sum() / weights_BN.sum()

    def _check(self, teacher: Features, pair: PairConfig) -> None:
        """Raise an error for options that do not fit the cached features of a pair."""
        config, where = self.config, f"objectives.match of {pair.features}"
        whole = config.normalize == "standardize" or bool(config.levels)
        if teacher.standardized and config.normalize != "standardize":
            raise UsageError(
                "the cached maps are standardized, but the student's would not be",
                where=where,
                hint="set normalize: standardize",
            )
        if whole and (teacher.positions is not None or teacher.layout == "vector"):
            raise UsageError(
                "the options normalize: standardize and levels need cached features of whole maps",
                where=where,
                got=f"a {teacher.layout}"
                if teacher.positions is None
                else f"{teacher.positions.shape[1]} positions of each map",
                hint="precompute this layer without tokens and reduce, or remove the option",
            )
        if config.levels and teacher.grid is None:
            raise UsageError("levels needs a square map", where=where, hint="remove levels")
        check_channels(config.projector, teacher, where)


def _pooled(values_BPD: Tensor, grid: int | None, side: int) -> Tensor:
    """Return a map averaged to a smaller grid."""
    assert grid is not None  # checked
    return as_tokens(functional.adaptive_avg_pool2d(as_map(values_BPD, grid), side))
