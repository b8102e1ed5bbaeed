"""Cross-entropy with labels; binary cross-entropy where an image may have several.

Shapes: B batch, C classes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Self

import torch
from pydantic import Field, model_validator
from torch.nn import functional

from logitcache.batch import Outputs, SigmoidLogits
from logitcache.errors import UsageError
from logitcache.objectives.alignment import wide
from logitcache.objectives.outside import show_a_class
from logitcache.objectives.term import LogitsTermConfig, Needs
from logitcache.objectives.weights import other_classes, teacher_weights

if TYPE_CHECKING:
    from torch import Tensor

    from logitcache.batch import TargetBatch

__all__ = ["Label", "LabelConfig", "indicators"]


class LabelConfig(LogitsTermConfig):
    """Cross-entropy with the labels.

    Attributes:
        weight: Weight of this term in the sum.
        head: Student layer with the logits; the output of the network by default.
        smoothing: Label smoothing: share of the target that is spread over all classes; of label
            sets, the share that is spread over presence and absence of each class.
        binary: Whether the loss is a binary cross-entropy of each class, for images with one label,
            too; by default for label sets, and where all teachers of the batch have a sigmoid for
            each class.
        joint: Whether the classes of the head are pairs of a class and a view of the batch, in the
            order of ``show``: with V views, the joint class of label y in view k is y V + k.
        pseudo: Name of a teacher whose most likely class is the label, instead of that of the
            image, which is then not read.
        above: Smallest probability of that class; images with a smaller one have no label.
    """

    smoothing: float = Field(default=0.0, ge=0, lt=1)
    binary: bool | None = None
    joint: bool = False
    pseudo: str | None = None
    above: float = Field(default=0.5, ge=0, lt=1)

    @model_validator(mode="after")
    def _one_label(self) -> Self:
        if self.joint and self.binary:
            raise ValueError("joint labels are one class per image: remove binary, or remove joint")
        return self

    @property
    def needs(self) -> Needs:
        """Required targets and student layers: the head, and the teacher of pseudo labels."""
        teachers = () if self.pseudo is None else (self.pseudo,)
        return super().needs | Needs(teachers=teachers)

    @property
    def needs_labels(self) -> bool:
        """Whether labels are those of the images, not pseudo labels."""
        return self.pseudo is None


class Label:
    """Cross-entropy with the labels, in nats, averaged over the rows that have one.

    ::

        L = -mean over labeled rows of sum_c y_c log softmax(z)_c

    where y is 1 at the label; with smoothing s it is (1 - s) + s / C there and s / C elsewhere. For
    mixed images, y is lambda times that of the image's own label plus 1 - lambda times that of the
    partner's, and a row is averaged over if both labels are known. Zero if no row is.

    With ``pseudo``, a row's label is the class c with the largest probability p_c of a cached
    teacher at T = 1, where p_c >= ``above``; other rows have none.

    Where an image may have several classes::

        L = -mean over labeled rows of sum_c y_c log sigmoid(z_c) + (1 - y_c) log sigmoid(-z_c)

    where y_c is 1 for the classes of the image, else 0; with smoothing (1 - s) y_c + s / 2. For
    mixed images, y is mixed as above.

    With joint labels, softmax(z) is a distribution over pairs of a class and a view. Its sum over
    the views is one over the classes alone, in the order of the labels.

    Args:
        config: Settings of the term.
    """

    def __init__(self, config: LabelConfig | None = None) -> None:
        self.config = config or LabelConfig()

    def __call__(self, outputs: Outputs | Tensor, targets: TargetBatch) -> Tensor:
        """Return the loss, a scalar."""
        student = Outputs.of(outputs)
        logits_BC = student.logits_of(self.config.head)
        targets = self._labeled(targets)
        known = _known(targets)
        if not bool(known.any()):
            return logits_BC.sum() * 0.0  # depends on the logits, so that backward() can be called
        if self.config.joint:
            # a network that is run up to a head has logits without columns
            classes = None if self.config.head is None else student.logits.shape[1] or None
            labels_B = _joint_labels(targets, logits_BC.shape[1], classes)
            return self._loss(logits_BC, labels_B, "mean")
        if self.is_binary(targets):
            labels_BC = indicators(targets, logits_BC.shape[1])
            loss_B = self._binary(wide(logits_BC), labels_BC)
            return (loss_B * known).sum() / known.sum()
        if targets.partner_labels is None or targets.lam is None:
            return self._loss(logits_BC, targets.labels, "mean")
        own = self._loss(logits_BC, targets.labels, "none")
        other = self._loss(logits_BC, targets.partner_labels, "none")
        mixed = targets.lam * own + (1 - targets.lam) * other
        return (mixed * known).sum() / known.sum()

    def count(self, targets: TargetBatch) -> Tensor:
        """Return the number of rows whose labels are all known."""
        return _known(self._labeled(targets)).sum()

    def _labeled(self, targets: TargetBatch) -> TargetBatch:
        """Return targets whose labels are the pseudo labels of a teacher, if it is configured.

        Raises:
            UsageError: The teacher is not in the batch, or has a sigmoid for each class.
        """
        name = self.config.pseudo
        if name is None:
            return targets
        teacher_weights({name: 1.0}, targets.teachers)
        teacher = targets.teachers[name]
        if isinstance(teacher, SigmoidLogits):
            raise UsageError(
                "pseudo labels are the most likely class of a softmax",
                where="objectives.label.pseudo",
                got=f"teacher {name} with head: sigmoid",
                hint="use soft with this teacher",
            )
        log_probs_B1, classes_B1 = teacher.top_classes(1)
        sure_B = log_probs_B1[:, 0].exp() >= self.config.above
        labels_B = classes_B1[:, 0].masked_fill(~sure_B, -1)
        return replace(targets, labels=labels_B, partner_labels=None, lam=None, label_sets=None)

    def is_binary(self, targets: TargetBatch) -> bool:
        """Return whether the loss is the sum of binary cross-entropies of each class.

        Raises:
            UsageError: It is configured not to be, but images have label sets.
        """
        teachers = targets.teachers.values()
        if targets.label_sets is None and self.config.binary is None:
            return bool(teachers) and all(isinstance(one, SigmoidLogits) for one in teachers)
        if targets.label_sets is not None and self.config.binary is False:
            raise UsageError(
                "cross-entropy over the classes needs one label per image, but these have sets",
                where="objectives.label.binary",
                expected="true for label sets",
                got="false",
                hint="remove binary",
            )
        return targets.label_sets is not None or bool(self.config.binary)

    def _binary(self, logits_BC: Tensor, labels_BC: Tensor) -> Tensor:
        """Return the binary cross-entropy of every row, summed over the classes.

        Raises:
            UsageError: The student has fewer classes than the labels.
        """
        more = logits_BC.shape[1] - labels_BC.shape[1]
        if more < 0:
            raise other_classes(logits_BC.shape[1], labels_BC.shape[1])
        # outputs without a class of the data are never present; NaN is masked by the caller
        y_BC = functional.pad(labels_BC.nan_to_num(), (0, more))
        smoothing = self.config.smoothing
        target_BC = ((1 - smoothing) * y_BC + smoothing / 2).to(logits_BC.dtype)
        return functional.binary_cross_entropy_with_logits(
            logits_BC, target_BC, reduction="none"
        ).sum(1)

    def _loss(self, logits_BC: Tensor, labels_B: Tensor, reduction: str) -> Tensor:
        """Return the cross-entropy, 0 in rows whose label is -1."""
        config = self.config
        # plain labels of the network's own output were compared with its classes by name
        if config.head is not None or config.joint or config.pseudo is not None:
            _check_outputs(labels_B, logits_BC.shape[1])
        return functional.cross_entropy(
            wide(logits_BC),
            labels_B,
            ignore_index=-1,
            label_smoothing=self.config.smoothing,
            reduction=reduction,
        )


def _joint_labels(targets: TargetBatch, outputs: int, classes: int | None) -> Tensor:
    """Return the number of the pair of each row's label and view, int64 (B,), -1 without a label.

    Args:
        targets: Labels and views.
        outputs: Number of outputs of the head.
        classes: Number of classes; None if it is not known, as where the head is the network's
            output.

    Raises:
        UsageError: The outputs are not pairs with these views, or rows have no single label.
    """
    views = max(1, len(targets.views))
    fits = outputs % views == 0 if classes is None else outputs == views * classes
    if targets.label_sets is not None or targets.partner_labels is not None or not fits:
        raise UsageError(
            "joint labels need one label per image, and an output for each class and view",
            where="objectives.label.joint",
            expected=f"{views} outputs for each class (views: {', '.join(targets.views)})",
            got="mixed images or label sets" if fits else f"{outputs} outputs",
            hint=f"give the head {views} times the classes (branches: {{classes: x{views}}})",
        )
    if views == 1:
        raise UsageError(
            "joint labels are pairs of a class and a view, but a batch has one view",
            where="objectives.label.joint",
            expected="several views of each image, such as show: [base, rot90(1)]",
            got=", ".join(targets.views) or "one view",
            hint="set show, or remove joint",
        )
    number_B = torch.arange(len(targets), device=targets.labels.device) // (len(targets) // views)
    return torch.where(targets.labels >= 0, targets.labels * views + number_B, -1)


def _check_outputs(labels_B: Tensor, outputs: int) -> None:
    """Refuse labels without an output: an accelerator would stop the process at them.

    Raises:
        UsageError: A label is not below the number of outputs.
    """
    highest = int(labels_B.max())
    if highest >= outputs:
        raise UsageError(
            "labels have no output of this head",
            expected=f"{highest + 1} outputs or more",
            got=f"{outputs} outputs",
            hint="give the head an output for each class, for joint labels one for each class and "
            "view (branches: {classes: x1})",
        )


def indicators(targets: TargetBatch, classes: int) -> Tensor:
    """Return 1 for the classes of each image, else 0, mixed for mixed images: float32 (B, C).

    Args:
        targets: A batch; rows without labels have no meaning, or are NaN with label sets.
        classes: Number of classes, C.

    Raises:
        UsageError: A label is not below the number of classes.
    """
    if targets.label_sets is not None:
        return targets.label_sets
    _check_outputs(targets.labels, classes)
    own_BC = functional.one_hot(targets.labels.clamp(min=0), classes).float()
    if targets.partner_labels is None or targets.lam is None:
        return own_BC
    _check_outputs(targets.partner_labels, classes)
    other_BC = functional.one_hot(targets.partner_labels.clamp(min=0), classes).float()
    return targets.lam[:, None] * own_BC + (1 - targets.lam[:, None]) * other_BC


def _known(targets: TargetBatch) -> Tensor:
    """Return which rows have the labels of all images they show, bool (B,)."""
    if targets.label_sets is not None:
        return ~targets.label_sets.isnan().any(1)
    return show_a_class(targets)
