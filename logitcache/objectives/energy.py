"""Objectives on energy maps of layers, with queries and keys from the layers' means.

Shapes: B batch, L layers, P positions of the teacher's map, W channels of queries and keys.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from logitcache.objectives.alignment import (
    aligned,
    as_vectors,
    cached_features,
    energy_of,
    unfit,
    wide,
)
from logitcache.objectives.fitted import created, try_on

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor

    from logitcache.batch import Features, Outputs, TargetBatch

__all__ = ["EnergyObjective", "check_whole", "energy_differences", "projected_means"]


class EnergyObjective(nn.Module, ABC):
    """Base of objectives on energy maps, which queries and keys of the layers weigh.

    Args:
        name: Name of the term, for messages.
        features: Names of the teacher's features in a batch.
        held: Names of the student layers.
    """

    def __init__(self, name: str, features: Sequence[str], held: Sequence[str]) -> None:
        super().__init__()
        self._features, self._held = features, held
        self._where = f"objectives.{name} of " + ", ".join(features)
        self.queries = nn.ModuleList()
        self.keys = nn.ModuleList()

    def fit(self, outputs: Outputs, targets: TargetBatch) -> None:
        """Create queries and keys, and check that the layers can be compared.

        Args:
            outputs: Example of outputs of the student, one row.
            targets: Example of targets, one row.

        Raises:
            UsageError: The shapes do not fit each other, or only a part of a layer was cached.
        """
        self.create(*self._layers(outputs, targets))
        try_on(self, outputs, targets)

    @abstractmethod
    def create(self, students: list[Features], teachers: list[Features]) -> None:
        """Create queries and keys for the activations of the layers, after a check of each."""

    def layers(
        self, outputs: Outputs, targets: TargetBatch
    ) -> tuple[list[Features], list[Features]]:
        """Return the activations of the student's and of the teacher's layers.

        Raises:
            UsageError: There are no queries and keys yet.
        """
        created(len(self.queries) or None, "list of queries and keys", self._where)
        return self._layers(outputs, targets)

    def _layers(
        self, outputs: Outputs, targets: TargetBatch
    ) -> tuple[list[Features], list[Features]]:
        students = [outputs.tap(name) for name in self._held]
        return students, [cached_features(targets, name) for name in self._features]


def projected_means(layers: Iterable[nn.Module], held: list[Features]) -> Tensor:
    """Return the means of all layers over positions, each projected, (B, L, W)."""
    means = [layer(wide(as_vectors(each))) for layer, each in zip(layers, held, strict=True)]
    return torch.stack(means, 1)


def energy_differences(student: Features, teacher: Features, where: str) -> Tensor:
    """Return the squared differences of two energy maps of unit length, (B, P).

    An energy map has the mean square of the channels at every position. That of the student is
    resized to the positions of the teacher before both are divided by their length.

    Args:
        student: Activations of a student layer.
        teacher: Cached activations of a teacher layer.
        where: Name of the term, for messages.

    Raises:
        UsageError: The maps cannot be compared.
    """
    pair = aligned(student, energy_of(teacher), prefix=False, where=where)
    maps = (functional.normalize(side[..., 0], dim=1) for side in (pair.student, pair.teacher))
    ours_BP, theirs_BP = maps
    return (ours_BP - theirs_BP).square()


def check_whole(student: Features, teacher: Features, where: str) -> None:
    """Check that both the mean and the energy can be computed of cached activations.

    Raises:
        UsageError: Only a part or a reduction of the teacher's layer was cached, or it is a vector.
    """
    whole = teacher.reduction == "none" and teacher.positions is None
    if not whole:
        raise unfit(student, teacher, where, "precompute it without reduce and tokens")
    if teacher.layout == "vector":
        raise unfit(student, teacher, where, "choose another layer of the teacher, with positions")
