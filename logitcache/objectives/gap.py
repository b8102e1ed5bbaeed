"""Gap between the losses of two parts of an image set, such as images and restyled copies.

Source: the consistency loss of SSDA-YOLO (Zhou et al., "SSDA-YOLO: Semi-supervised Domain Adaptive
YOLO for Cross-Domain Object Detection", Computer Vision and Image Understanding 2023), with the
cross-entropy of a classifier instead of the loss of a detector.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from pydantic import Field, model_validator

from logitcache.batch import Outputs
from logitcache.objectives.label import Label, LabelConfig
from logitcache.objectives.term import LogitsTermConfig

if TYPE_CHECKING:
    from torch import Tensor

    from logitcache.batch import TargetBatch

__all__ = ["Gap", "GapConfig"]


class GapConfig(LogitsTermConfig):
    """Gap between the losses of two parts of an image set.

    Attributes:
        weight: Weight of this term in the sum.
        head: Student layer with the logits; the output of the network by default.
        parts: Names of the two parts.
        smoothing: Label smoothing of both losses.
    """

    parts: list[str] | None = Field(default=None, min_length=2, max_length=2)
    smoothing: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _two_parts(self) -> Self:
        if self.parts is None or self.parts[0] == self.parts[1]:
            raise ValueError("the gap is between two parts of an image set: give parts: [A, B]")
        return self

    @property
    def needs_whole_batch(self) -> bool:
        """True: it is the square of a difference of means."""
        return True

    @property
    def needs_labels(self) -> bool:
        """True: images without labels have no part."""
        return True


class Gap:
    """Squared difference of the cross-entropies of two parts of a batch.

    ::

        L = (L_a - L_b)^2

    with L_a and L_b the losses ``label`` of the labeled rows of each part. Zero where a batch has
    none of one of them. With several processes each has the gap of its own rows.

    Args:
        config: The parts.
    """

    def __init__(self, config: GapConfig) -> None:
        self.config = config
        self._label = Label(LabelConfig(head=config.head, smoothing=config.smoothing))

    def __call__(self, outputs: Outputs | Tensor, targets: TargetBatch) -> Tensor:
        """Return the loss, a scalar."""
        student, losses = Outputs.of(outputs), []
        for part in self.config.parts or ():
            rows = targets.rows_of_parts([part])
            own = targets.take(rows)
            if not int(self._label.count(own)):
                return student.logits_of(self.config.head).sum() * 0.0
            losses.append(self._label(student.take(rows), own))
        one, other = losses
        return (one - other).square()

    def count(self, targets: TargetBatch) -> Tensor:
        """Return the number of labeled rows."""
        return self._label.count(targets)
