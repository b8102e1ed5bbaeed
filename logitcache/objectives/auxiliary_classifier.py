"""Loss of a classifier that is trained with the student, and that the student learns from.

Shapes: B batch, C classes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from logitcache.batch import DenseLogits, Outputs, SigmoidLogits
from logitcache.objectives.label import Label
from logitcache.objectives.soft import Soft, SoftConfig

if TYPE_CHECKING:
    from torch import Tensor

    from logitcache.batch import TargetBatch

__all__ = ["AuxiliaryClassifierLoss"]


class AuxiliaryClassifierLoss:
    """Cross-entropy of an auxiliary classifier, and the student's divergence from it.

    ::

        L = mean over rows of  CE(y, u) + T^2 KL(softmax(u / T) || softmax(z / T))

    with u the logits of the classifier, z those of the student and y the label, without which a
    row has the second part alone. The first part trains the classifier and the layers below it; u
    has no gradient in the second. For label sets both parts are binary, as in ``label`` and
    ``soft``.

    Args:
        temperature: Temperature T.
        head: Student layer with the logits z; None for the output of the network.
    """

    def __init__(self, temperature: float, head: str | None) -> None:
        self._label = Label()
        self._soft = Soft(SoftConfig(temperature=temperature, head=head))

    def __call__(self, logits_BC: Tensor, outputs: Outputs, targets: TargetBatch) -> Tensor:
        """Return the loss, a scalar.

        Args:
            logits_BC: Logits of the classifier.
            outputs: Outputs of the student.
            targets: Targets of the batch.
        """
        labeled = self._label.count(targets) / max(1, len(targets))
        taught_BC = logits_BC.detach()
        teacher = (
            SigmoidLogits(taught_BC)
            if self._label.is_binary(targets)
            else DenseLogits(taught_BC.log_softmax(1))
        )
        learned = self._soft(outputs, replace(targets, teachers={"auxiliary": teacher}))
        return labeled * self._label(Outputs(logits_BC), targets) + learned
