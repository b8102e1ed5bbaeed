"""The labels themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field
from torch.nn import functional

from logitcache.config import Config

if TYPE_CHECKING:
    from torch import Tensor

    from logitcache.batch import TargetBatch

__all__ = ["Label", "LabelConfig"]


class LabelConfig(Config):
    """Cross-entropy with the labels.

    Attributes:
        weight: Of this term in the sum.
        smoothing: Share of the target that is spread over all classes.
    """

    weight: float = Field(default=1.0, ge=0)
    smoothing: float = Field(default=0.0, ge=0, lt=1)


class Label:
    """Cross-entropy with the labels, in nats, averaged over the rows that have one.

    ::

        L = -mean over labelled rows of sum_c y_c log softmax(z)_c

    where y is one at the label, smoothed to (1 - s) + s / C there and s / C elsewhere. Zero where
    no row of the batch has a label.

    Args:
        config: Smoothing.
    """

    def __init__(self, config: LabelConfig | None = None) -> None:
        self.config = config or LabelConfig()

    def __call__(self, logits_BC: Tensor, targets: TargetBatch) -> Tensor:
        """Return the loss, a scalar."""
        if not bool((targets.labels >= 0).any()):
            return logits_BC.sum() * 0.0
        return functional.cross_entropy(
            logits_BC.float(),
            targets.labels,
            ignore_index=-1,
            label_smoothing=self.config.smoothing,
        )
