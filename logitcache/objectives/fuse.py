"""Distillation from a classifier over the features of student and teachers, trained with them.

After "Multi-scale Feature Extraction and Fusion for Online Knowledge Distillation" (MFEF), 2022:
its peers are students that learn from each other; here they are one student and cached teachers.
See :mod:`logitcache.objectives.fused_head`.

Shapes: B batch, C classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, PositiveInt
from torch import Tensor, nn

from logitcache.errors import UsageError
from logitcache.objectives.alignment import Pair, as_map, pair_of
from logitcache.objectives.auxiliary_classifier import AuxiliaryClassifierLoss
from logitcache.objectives.fitted import created, try_on
from logitcache.objectives.fused_head import FusedHead
from logitcache.objectives.term import LogitsTermConfig, PairsTermConfig

if TYPE_CHECKING:
    from logitcache.batch import Outputs, TargetBatch

__all__ = ["Fuse", "FuseConfig"]


class FuseConfig(PairsTermConfig, LogitsTermConfig):
    """Distillation from a classifier over the features of student and teachers together.

    Attributes:
        weight: Weight of this term in the sum.
        head: Student layer with the logits; the output of the network by default.
        pairs: Pairs of teacher and student layers, which have to be cached as whole maps on the
            same grid. A single pair may be written without this key, as teacher, tap and student.
        temperature: Temperature T of the distillation.
        scales: Number of groups of channels of the multi-scale extraction; 1 for none.
        attention: Whether each map goes through attention to channels and positions.
        width: Number of channels of the fusion; by default that of the first student layer.
    """

    temperature: float = Field(default=3.0, gt=0)
    scales: PositiveInt = 4
    attention: bool = True
    width: PositiveInt | None = None


class Fuse(nn.Module):
    """Distillation from a classifier over the maps of student and teachers, trained with them.

    The loss is that of :class:`.AuxiliaryClassifierLoss`. Student layers that are in several pairs
    are used once.

    Args:
        config: The layers, and how they are fused.
    """

    def __init__(self, config: FuseConfig) -> None:
        super().__init__()
        self.config = config
        self.fused: nn.Module | None = None
        self._loss = AuxiliaryClassifierLoss(config.temperature, config.head)

    def fit(self, outputs: Outputs, targets: TargetBatch) -> None:
        """Create the classifier, and check that the layers can be fused.

        Args:
            outputs: Example of outputs of the student, one row.
            targets: Example of targets, one row.

        Raises:
            UsageError: The layers are not maps on one grid, or their channels cannot be divided.
        """
        pairs = self._pairs(outputs, targets)
        for pair, config in zip(pairs, self.config.pairs, strict=True):
            if pair.grid is None or pair.positions is not None or pair.grid != pairs[0].grid:
                raise UsageError(
                    "a classifier over several layers needs whole maps on one square grid",
                    where=f"objectives.fuse of {config.features}",
                    expected="a map"
                    if pairs[0].grid is None
                    else f"a grid of side {pairs[0].grid}",
                    got=f"{pair.teacher.shape[1]} positions",
                    hint="precompute these layers with pool: N, without tokens and reduce",
                )
        channels = [each.shape[1] for each in self._maps(pairs)]
        if any(own % self.config.scales for own in channels):
            raise UsageError(
                "the channels of a layer cannot be divided into groups of equal size",
                where=f"{self._where}, scales",
                expected="a divisor of " + ", ".join(map(str, channels)),
                got=self.config.scales,
                hint="set scales: 1 for no multi-scale extraction",
            )
        self.fused = FusedHead(
            channels,
            self.config.width or channels[0],
            outputs.logits_of(self.config.head).shape[1],
            scales=self.config.scales,
            attention=self.config.attention,
        )
        try_on(self, outputs, targets)

    def forward(self, outputs: Outputs, targets: TargetBatch) -> Tensor:
        """Return the loss, a scalar."""
        return self._loss(self.logits(outputs, targets), outputs, targets)

    def logits(self, outputs: Outputs, targets: TargetBatch) -> Tensor:
        """Return the logits of the fused classifier, (B, C)."""
        fused = created(self.fused, "classifier", self._where)
        logits_BC: Tensor = fused(self._maps(self._pairs(outputs, targets)))
        return logits_BC

    @property
    def _where(self) -> str:
        return "objectives.fuse of " + ", ".join(pair.features for pair in self.config.pairs)

    def _pairs(self, outputs: Outputs, targets: TargetBatch) -> list[Pair]:
        return [
            pair_of(pair, outputs, targets, prefix=False, where=self._where)
            for pair in self.config.pairs
        ]

    def _maps(self, pairs: list[Pair]) -> list[Tensor]:
        """Return the maps of each student layer once, then those of the teachers."""
        students = {
            config.held: pair.student for config, pair in zip(self.config.pairs, pairs, strict=True)
        }
        values = [*students.values(), *(pair.teacher for pair in pairs)]
        return [as_map(value, pairs[0].grid or 1) for value in values]
