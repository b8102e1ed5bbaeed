"""Cross-entropy with labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field
from torch.nn import functional

from logitcache.batch import Outputs
from logitcache.objectives.term import LogitsTermConfig

if TYPE_CHECKING:
    from torch import Tensor

    from logitcache.batch import TargetBatch

__all__ = ["Label", "LabelConfig"]


class LabelConfig(LogitsTermConfig):
    """Cross-entropy with the labels.

    Attributes:
        weight: Of this term in the sum.
        head: Student layer with the logits; the output of the network by default.
        smoothing: Share of the target that is spread over all classes.
    """

    smoothing: float = Field(default=0.0, ge=0, lt=1)


class Label:
    """Cross-entropy with the labels, in nats, averaged over the rows that have one.

    ::

        L = -mean over labeled rows of sum_c y_c log softmax(z)_c

    where y is one at the label, smoothed to (1 - s) + s / C there and s / C elsewhere. Where images
    are mixed, y is lambda times that of the row's own label and 1 - lambda times that of its
    partner's, and a row counts if the labels of all it shows are known. Zero where no row does.

    Args:
        config: Smoothing.
    """

    def __init__(self, config: LabelConfig | None = None) -> None:
        self.config = config or LabelConfig()

    def __call__(self, outputs: Outputs | Tensor, targets: TargetBatch) -> Tensor:
        """Return the loss, a scalar."""
        logits_BC = Outputs.of(outputs).logits_of(self.config.head)
        known = _known(targets)
        if not bool(known.any()):
            return logits_BC.sum() * 0.0
        if targets.partner_labels is None or targets.lam is None:
            return self._loss(logits_BC, targets.labels, "mean")
        own = self._loss(logits_BC, targets.labels, "none")
        other = self._loss(logits_BC, targets.partner_labels, "none")
        mixed = targets.lam * own + (1 - targets.lam) * other
        return (mixed * known).sum() / known.sum()

    def count(self, targets: TargetBatch) -> Tensor:
        """Return how many rows have all their labels."""
        return _known(targets).sum()

    def _loss(self, logits_BC: Tensor, labels_B: Tensor, reduction: str) -> Tensor:
        """Return the loss, 0 in rows where the label is -1."""
        return functional.cross_entropy(
            logits_BC.float(),
            labels_B,
            ignore_index=-1,
            label_smoothing=self.config.smoothing,
            reduction=reduction,
        )


def _known(targets: TargetBatch) -> Tensor:
    """Return which rows have the labels of all they show, bool (B,)."""
    known = targets.labels >= 0
    if targets.partner_labels is None or targets.lam is None:
        return known
    return known & ((targets.partner_labels >= 0) | (targets.lam == 1))
