"""Distillation from a classifier of features that attend to prototypes of a teacher.

After Li et al., "Prototype-guided Cross-task Knowledge Distillation for Large-scale Models"
(ProC-KD), 2022, of which only the abstract was available, by way of the authors' earlier
"Universal-Prototype Enhancing for Few-Shot Object Detection" (ICCV 2021). No outputs of a teacher
are needed for the student's images, so teacher and student may have other classes.

Shapes: B batch, C classes, P positions, K prototypes, D channels of the student, E of the
prototypes, W width of the attention.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from logitcache.errors import UsageError
from logitcache.objectives.alignment import as_patches
from logitcache.objectives.auxiliary_classifier import AuxiliaryClassifierLoss
from logitcache.objectives.fitted import created
from logitcache.objectives.prototypes.table import PrototypeTable, read_prototypes
from logitcache.objectives.term import LogitsTermConfig, Needs

if TYPE_CHECKING:
    from logitcache.batch import Outputs, TargetBatch

__all__ = ["Attend", "AttendConfig", "PrototypeAttention"]


class AttendConfig(LogitsTermConfig):
    """Distillation from a classifier of features that attend to prototypes of a teacher.

    Attributes:
        weight: Weight of this term in the sum.
        head: Student layer with the logits; the output of the network by default.
        file: File of ``learn_prototypes``.
        student: Student layer with maps or tokens.
        temperature: Temperature T of the distillation.
        width: Number of channels of the attention.
    """

    file: str
    student: str
    temperature: float = Field(default=1.0, gt=0)
    width: PositiveInt = 64

    @property
    def reads(self) -> tuple[str, ...]:
        """Files that the term reads when it is fitted: the prototypes."""
        return (self.file,)

    @property
    def needs(self) -> Needs:
        """Required layers: the head, and the layer that attends."""
        return super().needs | Needs(taps=(self.student,))


class PrototypeAttention(nn.Module):
    """Features of a student, enhanced by attention to prototypes.

    ::

        p_j  = W f_j;  m_k = norm(c_k + V_k / P)
        f'_j = f_j + O sum over k of s_jk U m_k,  s_jk = softmax over k of Q f_j . K m_k / sqrt(W)

    with f_j the student at position j, V the descriptors of p (see :class:`.PrototypeTable`), W, O,
    Q, K and U linear layers and norm layer norm.

    Args:
        channels: Number of channels of the student, D.
        width: Number of channels of the attention, W.
        table: The prototypes.
    """

    def __init__(self, channels: int, width: int, table: PrototypeTable) -> None:
        super().__init__()
        self.table = table
        self.align = nn.Linear(channels, table.channels)
        self.norm = nn.LayerNorm(table.channels)
        self.query = nn.Linear(channels, width)
        self.key = nn.Linear(table.channels, width)
        self.value = nn.Linear(table.channels, width)
        self.out = nn.Linear(width, channels)

    def forward(self, features_BPD: Tensor) -> Tensor:
        """Return enhanced features (B, P, D)."""
        added_BKE = self.table.descriptors(self.align(features_BPD)) / features_BPD.shape[1]
        memory_BKE = self.norm(self.table.centers + added_BKE)
        mixed_BPW = functional.scaled_dot_product_attention(
            self.query(features_BPD), self.key(memory_BKE), self.value(memory_BKE)
        )
        enhanced_BPD: Tensor = features_BPD + self.out(mixed_BPW)
        return enhanced_BPD


class Attend(nn.Module):
    """Distillation from a classifier of the mean of enhanced features, trained with the student.

    The loss is that of :class:`.AuxiliaryClassifierLoss`, the features those of
    :class:`PrototypeAttention`.

    Args:
        config: The layer and the prototypes.
    """

    def __init__(self, config: AttendConfig) -> None:
        super().__init__()
        self.config = config
        self.attention: nn.Module | None = None
        self.classifier: nn.Module | None = None
        self._loss = AuxiliaryClassifierLoss(config.temperature, config.head)

    def fit(self, outputs: Outputs, targets: TargetBatch) -> None:
        """Read the prototypes, and create attention and classifier.

        Args:
            outputs: Example of outputs of the student, one row.
            targets: Example of targets, one row.

        Raises:
            UsageError: The prototypes cannot be read, or the layer is a vector.
        """
        table = read_prototypes(self.config.file, self._where)
        channels = self._features(outputs).shape[2]
        classes = outputs.logits_of(self.config.head).shape[1]
        self.attention = PrototypeAttention(channels, self.config.width, table)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, outputs: Outputs, targets: TargetBatch) -> Tensor:
        """Return the loss, a scalar."""
        return self._loss(self.logits(outputs), outputs, targets)

    def logits(self, outputs: Outputs) -> Tensor:
        """Return the logits of the classifier of enhanced features, (B, C)."""
        attention = created(self.attention, "attention", self._where)
        classifier = created(self.classifier, "classifier", self._where)
        logits_BC: Tensor = classifier(attention(self._features(outputs)).mean(1))
        return logits_BC

    @property
    def _where(self) -> str:
        return f"objectives.attend of {self.config.student}"

    def _features(self, outputs: Outputs) -> Tensor:
        held = outputs.tap(self.config.student)
        if held.layout == "vector":
            raise UsageError(
                "prototypes are attended to from several positions, but this layer is a vector",
                where=self._where,
                hint="choose a student layer with maps or tokens",
            )
        return as_patches(held)
