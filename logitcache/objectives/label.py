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
        weight: Weight of this term in the sum.
        head: Student layer with the logits; the output of the network by default.
        smoothing: Label smoothing: share of the target that is spread over all classes.
    """

    smoothing: float = Field(default=0.0, ge=0, lt=1)


class Label:
    """Cross-entropy with the labels, in nats, averaged over the rows that have one.

    ::

        L = -mean over labeled rows of sum_c y_c log softmax(z)_c

    where y is 1 at the label; with smoothing s it is (1 - s) + s / C there and s / C elsewhere. For
    mixed images, y is lambda times that of the image's own label plus 1 - lambda times that of the
    partner's, and a row is averaged over if both labels are known. Zero if no row is.

    Args:
        config: Settings of the term.
    """

    def __init__(self, config: LabelConfig | None = None) -> None:
        self.config = config or LabelConfig()

    def __call__(self, outputs: Outputs | Tensor, targets: TargetBatch) -> Tensor:
        """Return the loss, a scalar."""
        logits_BC = Outputs.of(outputs).logits_of(self.config.head)
        known = _known(targets)
        if not bool(known.any()):
            return logits_BC.sum() * 0.0  # depends on the logits, so that backward() can be called
        if targets.partner_labels is None or targets.lam is None:
            return self._loss(logits_BC, targets.labels, "mean")
        own = self._loss(logits_BC, targets.labels, "none")
        other = self._loss(logits_BC, targets.partner_labels, "none")
        mixed = targets.lam * own + (1 - targets.lam) * other
        return (mixed * known).sum() / known.sum()

    def count(self, targets: TargetBatch) -> Tensor:
        """Return the number of rows whose labels are all known."""
        return _known(targets).sum()

    def _loss(self, logits_BC: Tensor, labels_B: Tensor, reduction: str) -> Tensor:
        """Return the cross-entropy, 0 in rows whose label is -1."""
        return functional.cross_entropy(
            logits_BC.float(),
            labels_B,
            ignore_index=-1,
            label_smoothing=self.config.smoothing,
            reduction=reduction,
        )


def _known(targets: TargetBatch) -> Tensor:
    """Return which rows have the labels of all images they show, bool (B,)."""
    known = targets.labels >= 0
    if targets.partner_labels is None or targets.lam is None:
        return known
    return known & ((targets.partner_labels >= 0) | (targets.lam == 1))
