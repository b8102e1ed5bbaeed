"""Feature distillation by assignment to prototypes.

A student predicts which prototypes the local features of a teacher are assigned to. It is what
Jain et al., "QUEST: Quantized Embedding Space for Transferring Knowledge" (ECCV 2020), do with
k-means; in ProC-KD (see :mod:`logitcache.objectives.prototypes.attend`) it brings the student's
features to the prototypes on images of other classes than the teacher's.

Shapes: B batch, n positions, K prototypes, E channels of teacher and prototypes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field
from torch import Tensor, nn

from logitcache.errors import UsageError
from logitcache.objectives.alignment import Pair, pair_of
from logitcache.objectives.fitted import created
from logitcache.objectives.prototypes.table import PrototypeTable, read_prototypes
from logitcache.objectives.term import Needs, PairConfig, TermConfig

if TYPE_CHECKING:
    from logitcache.batch import Outputs, TargetBatch

__all__ = ["Assign", "AssignConfig"]


class AssignConfig(TermConfig, PairConfig):
    """Feature distillation by assignment to prototypes.

    Attributes:
        weight: Weight of this term in the sum.
        tap: Name of the teacher layer in the cache, that of the prototypes.
        file: File of ``learn_prototypes``.
        temperature: Temperature of the teacher's assignment.
    """

    file: str
    temperature: float = Field(default=1.0, gt=0)

    @property
    def reads(self) -> tuple[str, ...]:
        """Files that the term reads when it is fitted: the prototypes."""
        return (self.file,)

    @property
    def needs(self) -> Needs:
        """Required targets and layers: one layer of the teacher and one of the student."""
        return PairConfig.needs_of([self])


class Assign(nn.Module):
    """Divergence of a student's assignment to prototypes from that of a teacher.

    ::

        L = mean over positions and rows of  KL(a(t_j, T) || a(W s_j, 1)),
        a(p, T) = softmax over k of (w_k . p + b_k) / T

    with t the teacher's features, s the student's at the same positions and W a linear layer.

    Args:
        config: The layers and the prototypes.
    """

    def __init__(self, config: AssignConfig) -> None:
        super().__init__()
        self.config = config
        self.table: PrototypeTable | None = None
        self.align: nn.Module | None = None

    def fit(self, outputs: Outputs, targets: TargetBatch) -> None:
        """Read the prototypes, and create the linear layer.

        Args:
            outputs: Example of outputs of the student, one row.
            targets: Example of targets, one row.

        Raises:
            UsageError: The prototypes cannot be read, or belong to another layer.
        """
        table, pair = read_prototypes(self.config.file, self._where), self._pair(outputs, targets)
        if pair.teacher.shape[2] != table.channels:
            raise UsageError(
                "the prototypes have another number of channels than the cached layer",
                where=self._where,
                expected=f"{table.channels} channels, as in {self.config.file}",
                got=f"{pair.teacher.shape[2]} channels",
                hint="choose the layer that the prototypes were learned of",
            )
        self.table = table
        self.align = nn.Linear(pair.student.shape[2], table.channels)

    def forward(self, outputs: Outputs, targets: TargetBatch) -> Tensor:
        """Return the loss, a scalar."""
        table = created(self.table, "table of prototypes", self._where)
        align = created(self.align, "linear layer", self._where)
        pair = self._pair(outputs, targets)
        wanted_BnK = table.log_shares(pair.teacher, self.config.temperature)
        found_BnK = table.log_shares(align(pair.picked(pair.student)))
        return (wanted_BnK.exp() * (wanted_BnK - found_BnK)).sum(2).mean()

    @property
    def _where(self) -> str:
        return f"objectives.assign of {self.config.features}"

    def _pair(self, outputs: Outputs, targets: TargetBatch) -> Pair:
        return pair_of(self.config, outputs, targets, prefix=False, where=self._where)
