"""Attention from layers of a student to layers of a teacher, of which the best are imitated.

After Yang et al., "Representative Teacher Keys for Knowledge Distillation Model Compression Based
on Attention Mechanism for Image Classification" (RTK), 2022, of which only the abstract was
available, by way of the method that it extends: Ji et al., "Show, Attend and Distill" (AFD), AAAI
2021. Attention is normalized over the layers of the teacher, as RTK describes it; AFD normalizes
over those of the student.

Shapes: B batch, S student layers, T teacher layers, D channels, P positions.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Self

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional

from logitcache.objectives.alignment import as_vectors
from logitcache.objectives.energy import (
    EnergyObjective,
    check_whole,
    energy_differences,
    projected_means,
)
from logitcache.objectives.term import Needs, TermConfig

if TYPE_CHECKING:
    from logitcache.batch import Features, Outputs, TargetBatch

__all__ = ["Route", "RouteConfig"]


class RouteConfig(TermConfig):
    """Feature distillation with learned pairs of layers.

    Attributes:
        weight: Weight of this term in the sum.
        teacher: Name of the teacher.
        taps: Names of the teacher's layers in the cache, which have to be whole maps or tokens.
        students: Names of the student layers; the same as ``taps`` by default.
        keep: Number of teacher layers that each student layer attends to; all by default.
        width: Number of channels of queries and keys.
    """

    teacher: str
    taps: list[str] = Field(min_length=1)
    students: list[str] | None = Field(default=None, min_length=1)
    keep: PositiveInt | None = None
    width: PositiveInt = 128

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for names in (self.taps, self.held):
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                raise ValueError(f"the layer {twice} is given twice")
        if self.keep is not None and self.keep > len(self.taps):
            raise ValueError(f"keep is {self.keep}, but there are {len(self.taps)} layers to keep")
        return self

    @property
    def features(self) -> list[str]:
        """Names of the teacher's features in a batch."""
        return [f"{self.teacher}/{tap}" for tap in self.taps]

    @property
    def held(self) -> list[str]:
        """Names of the student layers."""
        return self.students or self.taps

    @property
    def needs(self) -> Needs:
        """Required targets and layers: all of the teacher's and the student's."""
        return Needs(features=tuple(sorted(self.features)), taps=tuple(sorted(self.held)))


class Route(EnergyObjective):
    """Energy maps of a student against those of the teacher layers that it attends to.

    ::

        a_st = softmax over the kept t of (W_s mean(f_s)) . (V_t mean(f_t)) / sqrt(width)
        L = sum over s and t of a_st |m(f_s) - m(f_t)|^2, mean over rows

    with mean(f) the mean over positions without prefix tokens, m(f) the mean square of the channels
    at every position as a vector of unit length, the student's resized to the teacher's positions
    first. W_s and V_t are linear layers. Of each row and student layer, the layers with the largest
    scores are kept; the others have no part in the softmax.

    Args:
        config: The layers, and how many are kept.
    """

    def __init__(self, config: RouteConfig) -> None:
        super().__init__("route", config.features, config.held)
        self.config = config

    def create(self, students: list[Features], teachers: list[Features]) -> None:
        """Create a query for each student layer and a key for each of the teacher's."""
        for student in students:
            for teacher in teachers:
                check_whole(student, teacher, self._where)
        width = self.config.width
        self.queries.extend(nn.Linear(as_vectors(s).shape[1], width) for s in students)
        self.keys.extend(nn.Linear(as_vectors(t).shape[1], width) for t in teachers)

    def forward(self, outputs: Outputs, targets: TargetBatch) -> Tensor:
        """Return the loss, a scalar."""
        students, teachers = self.layers(outputs, targets)
        rows = [
            torch.stack([energy_differences(student, t, self._where).sum(1) for t in teachers], 1)
            for student in students
        ]
        distances_BST = torch.stack(rows, 1)
        return (self.attention(students, teachers) * distances_BST).sum((1, 2)).mean()

    def attention(self, students: list[Features], teachers: list[Features]) -> Tensor:
        """Return the attention of each student layer to the teacher layers, (B, S, T).

        Args:
            students: Activations of the student layers.
            teachers: Cached activations of the teacher layers.
        """
        queries_BSW = projected_means(self.queries, students)
        keys_BTW = projected_means(self.keys, teachers)
        scores_BST = queries_BSW @ keys_BTW.transpose(1, 2) / math.sqrt(self.config.width)
        keep = self.config.keep or len(teachers)
        kept = scores_BST.topk(keep, 2)
        weights = torch.zeros_like(scores_BST)
        return weights.scatter(2, kept.indices, functional.softmax(kept.values, 2))
