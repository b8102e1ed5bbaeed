"""Energy maps of pairs of layers, each of which a learned gate switches on or off for every row.

Source: Zhang et al., "Guided Hybrid Quantization for Object Detection in Multimodal Remote Sensing
Imagery via One-to-One Self-Teaching" (GHOST), IEEE Transactions on Geoscience and Remote Sensing
2023, and its code, which is followed where both differ: a gate draws one Gumbel number, where the
relaxation of a Bernoulli variable has the difference of two, and the distance of two maps is a mean
over positions.

Shapes: B batch, L pairs of layers, P positions.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from logitcache.objectives.alignment import as_vectors
from logitcache.objectives.energy import (
    EnergyObjective,
    check_whole,
    energy_differences,
    projected_means,
)
from logitcache.objectives.term import PairsTermConfig

if TYPE_CHECKING:
    from logitcache.batch import Features, Outputs, TargetBatch

__all__ = ["Gate", "GateConfig"]


class GateConfig(PairsTermConfig):
    """Feature distillation with a learned gate for each pair of layers.

    Attributes:
        weight: Weight of this term in the sum; 400 in GHOST.
        pairs: Pairs of teacher and student layers; the teacher's have to be whole maps or tokens. A
            single pair may be written without this key, as teacher, tap and student.
        width: Number of channels of queries and keys.
    """

    width: PositiveInt = 128


class Gate(EnergyObjective):
    """Distances of energy maps, of the pairs of layers whose gates are open.

    ::

        q = norm(W mean(t)),  k = relu(norm(V mean(s)))
        p = sigmoid(q . k / sqrt(width) + g),  gate = 1 if p > 1/2 else 0
        L = sum over pairs of gate (mean over positions of (m(s) - m(t))^2), mean over rows

    with mean the mean over positions without prefix tokens, m the energy map of unit length, W and
    V linear layers, norm batch norm, and g a number of the Gumbel distribution, drawn for every
    row, pair and step. The gradient of a gate is that of p (straight through). A gate that closes
    makes the loss smaller, so gates close where the distance of a pair does not fall.

    Args:
        config: The layers, and the size of the gates.
    """

    def __init__(self, config: GateConfig) -> None:
        pairs = config.pairs
        super().__init__("gate", [pair.features for pair in pairs], [pair.held for pair in pairs])
        self.config = config

    def create(self, students: list[Features], teachers: list[Features]) -> None:
        """Create a query and a key for each pair of layers; see :class:`.EnergyObjective`."""
        for student, teacher in zip(students, teachers, strict=True):
            check_whole(student, teacher, self._where)
        width = self.config.width
        for layers, held in ((self.queries, teachers), (self.keys, students)):
            for each in held:
                linear = nn.Linear(as_vectors(each).shape[1], width)
                layers.append(nn.Sequential(linear, nn.BatchNorm1d(width)))

    def forward(self, outputs: Outputs, targets: TargetBatch) -> Tensor:
        """Return the loss, a scalar."""
        students, teachers = self.layers(outputs, targets)
        distances_BL = torch.stack(
            [
                energy_differences(student, teacher, self._where).mean(1)
                for student, teacher in zip(students, teachers, strict=True)
            ],
            1,
        )
        return (self.gates(students, teachers) * distances_BL).sum(1).mean()

    def gates(self, students: list[Features], teachers: list[Features]) -> Tensor:
        """Return the gates, 0 or 1, (B, L), with the gradient of their probabilities.

        Args:
            students: Activations of the student layers.
            teachers: Cached activations of the teacher layers.
        """
        queries_BLW = projected_means(self.queries, teachers)
        keys_BLW = projected_means(self.keys, students).relu()
        logits_BL = (queries_BLW * keys_BLW).sum(2) / math.sqrt(self.config.width)
        if self.training:
            logits_BL = logits_BL + _gumbel(logits_BL)
        open_BL = logits_BL.sigmoid()
        hard_BL = (open_BL > 0.5).to(open_BL.dtype)
        return hard_BL + (open_BL - open_BL.detach())


def _gumbel(like: Tensor) -> Tensor:
    """Return numbers of the standard Gumbel distribution, as torch's ``gumbel_softmax`` does."""
    return -torch.empty_like(like).exponential_().log()
