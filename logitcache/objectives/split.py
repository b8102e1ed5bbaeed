"""NKD and DKD: separate terms for target and non-target classes.

Sources: Yang et al., "From Knowledge Distillation to Self-Knowledge Distillation: A Unified
Approach with Normalized Loss and Customized Soft Labels", ICCV 2023 (NKD, as its code has it);
Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022 (DKD, without its code's warm-up).

Shapes: B batch, C classes, K stored classes; b = 1 / T; y the label.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field
from torch.nn import functional

from logitcache.batch import Outputs, SigmoidLogits, SparseLogits
from logitcache.errors import UsageError
from logitcache.objectives.alignment import wide
from logitcache.objectives.outside import Outside, show_a_class, within_classes
from logitcache.objectives.sparse_cross_entropy import log_absent_mass
from logitcache.objectives.term import AskingTermConfig
from logitcache.objectives.weights import logits_of_teachers, other_classes, teacher_weights

if TYPE_CHECKING:
    from torch import Tensor

    from logitcache.batch import TargetBatch, TeacherLogits

__all__ = ["Split", "SplitConfig"]


class SplitConfig(AskingTermConfig):
    """Separate losses of the target class and of the non-target classes.

    Attributes:
        weight: Weight of this term in the sum.
        head: Student layer with the logits; the output of the network by default.
        teachers: Weight of each teacher by name, or the file of ``logitcache tools fit-weights``
            with these; by default equal weights that sum to one.
        form: Published loss: ``nkd`` or ``dkd``.
        target: Weight of the loss of the target class; 1 as published.
        others: Weight of the loss of the non-target classes; by default as published: 1.5 for nkd
            (1.0 for a DeiT), 8 for dkd.
        temperature: Temperature T; by default as published: 1 for nkd, 4 for dkd. Sparse targets
            need T = 1.
        outside: Treatment of the probability of the teacher's classes that a class map leaves out,
            as for ``soft``.
        mixed: What is done with mixed images, which have two labels: ``refuse`` them, or use the
            ``likelier`` label, that of the larger share, as the code of NKD does.
    """

    form: Literal["nkd", "dkd"] = "nkd"
    target: float = Field(default=1.0, ge=0)
    others: float | None = Field(default=None, ge=0)
    temperature: float | None = Field(default=None, gt=0)
    outside: Outside = "auto"
    mixed: Literal["refuse", "likelier"] = "refuse"

    @property
    def needs_labels(self) -> bool:
        """True: the target class is the label."""
        return True

    @property
    def others_weight(self) -> float:
        """Weight of the loss of the non-target classes."""
        published = {"nkd": 1.5, "dkd": 8.0}
        return published[self.form] if self.others is None else self.others

    @property
    def chosen_temperature(self) -> float:
        """Temperature T."""
        published = {"nkd": 1.0, "dkd": 4.0}
        return published[self.form] if self.temperature is None else self.temperature


class Split:
    """NKD or DKD, in nats, averaged over the rows with a label.

    ::

        nkd = -t p_y log s_y(1) - g T^2 sum_{c != y} p~_c log s~_c
        dkd =  t T^2 KL((p_y, 1 - p_y) || (s_y, 1 - s_y)) + g T^2 sum_{c != y} p~_c log(p~_c / s~_c)

    with t and g the weights of target and others; p~ and s~ are teacher and student at temperature
    T without class y, normalized to one. In nkd p_y and s_y(1) are taken at T = 1, in dkd at T. The
    loss is zero if no row has a label.

    With ``mixed: likelier`` the label of a mixed image is its own if its share lambda is at least
    one half, and otherwise that of its partner. Sparse targets keep the exact probability of an
    image's own label; that of a partner's label is exact among the top K, and otherwise an equal
    share of the tail.

    Args:
        config: Settings of the term.
    """

    def __init__(self, config: SplitConfig | None = None) -> None:
        self.config = config or SplitConfig()

    def __call__(self, outputs: Outputs | Tensor, targets: TargetBatch) -> Tensor:
        """Return the loss, a scalar.

        Raises:
            UsageError: A teacher of the configuration is not in the batch, sparse targets are used
                at a temperature other than one, images are mixed and ``mixed`` is ``refuse``,
                or have label sets.
        """
        chosen_B, of_partner_B = self._labels(targets)
        logits_BC = Outputs.of(outputs).logits_of(self.config.head)
        teachers = logits_of_teachers(self.config, targets)
        weights = teacher_weights(self.config.teachers, teachers)
        labeled = chosen_B >= 0
        if not bool(labeled.any()):
            return logits_BC.sum() * 0.0  # depends on the logits, so that backward() can be called
        labels_B = chosen_B.clamp(min=0)
        total = logits_BC.new_zeros((), dtype=torch.float32)
        for name, weight in weights.items():
            teacher = _without_own_label(teachers[name], of_partner_B)
            rows_B = self._rows(wide(logits_BC), labels_B, teacher, show_a_class(targets))
            total = total + weight * (rows_B * labeled).sum() / labeled.sum()
        return total

    def count(self, targets: TargetBatch) -> Tensor:
        """Return the number of rows with a label."""
        return (self._labels(targets)[0] >= 0).sum()

    def _labels(self, targets: TargetBatch) -> tuple[Tensor, Tensor | None]:
        """Return the label of every row (B,), and which of them are the partner's, bool (B,).

        Raises:
            UsageError: Images are mixed, which the configuration refuses, or have label sets.
        """
        if targets.label_sets is not None:
            raise UsageError(
                "the objective split needs one label per image, but these images have label sets",
                where="objectives.split",
                expected="images with one class each",
                hint="use the objectives soft and label",
            )
        if targets.partner_labels is None or targets.lam is None:
            return targets.labels, None
        if self.config.mixed == "refuse":
            raise UsageError(
                "the objective split needs one label per image, but mixed images have two",
                where="objectives.split",
                expected="views without mixing",
                hint="set mixed: likelier to use the label of the larger share, or precompute "
                "views without mixup and cutmix",
            )
        of_partner_B = (targets.lam < 0.5) & (targets.labels != targets.partner_labels)
        return torch.where(of_partner_B, targets.partner_labels, targets.labels), of_partner_B

    def _rows(
        self, logits_BC: Tensor, labels_B: Tensor, teacher: TeacherLogits, known_B: Tensor
    ) -> Tensor:
        """Return the loss of every row."""
        config, temperature = self.config, self.config.chosen_temperature
        log_s_BC = functional.log_softmax(logits_BC / temperature, 1)
        parts = _parts_of(log_s_BC, labels_B, teacher, temperature, config.outside, known_B)
        if config.form == "nkd":
            log_s_y_B = parts.log_s_y
            if temperature != 1.0:
                log_s_y_B = functional.log_softmax(logits_BC, 1).gather(1, labels_B[:, None])[:, 0]
            target_B = -parts.p_y_at_one * log_s_y_B
            others_B = parts.cross_entropy
        else:
            target_B = temperature**2 * parts.binary_divergence()
            others_B = parts.cross_entropy - parts.entropy
        if parts.weight is not None:
            others_B = parts.weight * others_B
            if config.form == "dkd":  # that of nkd has its weight in p_y, at T = 1
                target_B = parts.weight * target_B
        return config.target * target_B + config.others_weight * temperature**2 * others_B


@dataclass(frozen=True)
class _Parts:
    """Quantities that both forms are computed from; every tensor is (B,).

    Attributes:
        log_p_y: Log-probability of the target class by the teacher, at T.
        log_p_rest: Log-probability of all other classes together by the teacher, at T.
        log_s_y: Log-probability of the target class by the student, at T.
        log_s_rest: Log-probability of all other classes together by the student, at T.
        p_y_at_one: Probability of the target class by the teacher at T = 1.
        cross_entropy: -sum_{c != y} p~_c log s~_c.
        entropy: -sum_{c != y} p~_c log p~_c.
        weight: Weight of each row by the teacher's mass in the classes of the student, at T; None
            for equal weights. It is contained in ``p_y_at_one``.
    """

    log_p_y: Tensor
    log_p_rest: Tensor
    log_s_y: Tensor
    log_s_rest: Tensor
    p_y_at_one: Tensor
    cross_entropy: Tensor
    entropy: Tensor
    weight: Tensor | None = None

    def binary_divergence(self) -> Tensor:
        """Return KL((p_y, 1 - p_y) || (s_y, 1 - s_y))."""
        p_y, p_rest = self.log_p_y.exp(), self.log_p_rest.exp()
        negative_entropy = -torch.special.entr(p_y) - torch.special.entr(p_rest)
        divergence: Tensor = negative_entropy - p_y * self.log_s_y - p_rest * self.log_s_rest
        return divergence


# the smallest stored value; with a mass of zero the distribution over absent classes is undefined
_LEAST_LOG_MASS = torch.finfo(torch.float16).min


def _without_own_label(teacher: TeacherLogits, of_partner_B: Tensor | None) -> TeacherLogits:
    """Return targets without the stored probability of labels that are not used."""
    if of_partner_B is None or not isinstance(teacher, SparseLogits):
        return teacher
    if teacher.label_log_probs is None:
        return teacher
    kept_B = teacher.label_log_probs.masked_fill(of_partner_B, torch.nan)
    return replace(teacher, label_log_probs=kept_B)


def _parts_of(
    log_s_BC: Tensor,
    labels_B: Tensor,
    teacher: TeacherLogits,
    temperature: float,
    outside: Outside,
    known_B: Tensor,
) -> _Parts:
    if log_s_BC.shape[1] != teacher.num_classes:
        raise other_classes(log_s_BC.shape[1], teacher.num_classes)
    if isinstance(teacher, SigmoidLogits):
        raise UsageError(
            "the objective split needs a distribution over classes, but a teacher has a sigmoid "
            "for each class",
            where="objectives.split",
            expected="teachers with head: softmax",
            hint="use the objective soft",
        )
    if isinstance(teacher, SparseLogits):
        if temperature != 1.0:
            raise UsageError(
                "the objective split supports sparse targets at temperature 1 only",
                where="objectives.split.temperature",
                expected="1 for sparse targets",
                got=temperature,
                hint="precompute dense targets (encoding: {kind: dense}), or set temperature: 1",
            )
        return _parts_sparse(log_s_BC, labels_B, teacher)
    b, dtype = 1.0 / temperature, log_s_BC.dtype
    if teacher.outside is None:
        log_q_BC = teacher.log_probs.to(dtype)
        return _parts_dense(log_s_BC, labels_B, functional.log_softmax(b * log_q_BC, 1), log_q_BC)
    log_p_BC, weight_B = within_classes(teacher, b, outside, dtype, known_B)
    log_q_BC, weight_at_one_B = within_classes(teacher, 1.0, outside, dtype, known_B)
    if weight_at_one_B is not None:
        log_q_BC = log_q_BC + weight_at_one_B.log()[:, None]
    return replace(_parts_dense(log_s_BC, labels_B, log_p_BC, log_q_BC), weight=weight_B)


def _parts_dense(log_s_BC: Tensor, labels_B: Tensor, log_p_BC: Tensor, log_q_BC: Tensor) -> _Parts:
    """Return the quantities of a teacher with log-probabilities p at T and q at T = 1."""
    y_B1 = labels_B[:, None]
    rest_BC = log_p_BC.scatter(1, y_B1, -torch.inf)
    log_rest_B1 = rest_BC.logsumexp(1, keepdim=True)
    q_BC = (rest_BC - log_rest_B1).exp()
    log_s_rest_B = log_absent_mass(log_s_BC, y_B1)
    return _Parts(
        log_p_y=log_p_BC.gather(1, y_B1)[:, 0],
        log_p_rest=log_rest_B1[:, 0],
        log_s_y=log_s_BC.gather(1, y_B1)[:, 0],
        log_s_rest=log_s_rest_B,
        p_y_at_one=log_q_BC.gather(1, y_B1)[:, 0].exp(),
        cross_entropy=log_s_rest_B - (q_BC * log_s_BC).sum(1),
        entropy=torch.special.entr(q_BC).sum(1),
    )


def _parts_sparse(log_s_BC: Tensor, labels_B: Tensor, teacher: SparseLogits) -> _Parts:
    """Return the quantities at T = 1; absent classes share the mass of the tail equally.

    If the label is absent, its probability is subtracted from that mass. Everything is computed
    with logarithms: a confident teacher leaves the other classes less than the smallest float32,
    but the distribution over them is well defined.
    """
    y_B1 = labels_B[:, None]
    log_p_BK = teacher.log_probs.to(log_s_BC.dtype)
    log_mass_B = teacher.tail[:, 0].to(log_s_BC.dtype).clamp(min=_LEAST_LOG_MASS)
    used_BK = log_p_BK > -torch.inf
    is_y_BK = (teacher.class_ids == y_B1) & used_BK
    y_present_B = is_y_BK.any(1)
    absent_B = teacher.num_classes - used_BK.sum(1, dtype=log_s_BC.dtype)
    log_own_B = log_p_BK.masked_fill(~is_y_BK, -torch.inf).amax(1)
    log_p_y_B = torch.where(y_present_B, log_own_B, _absent_label(teacher, log_mass_B, absent_B))
    others_count_B = absent_B - (~y_present_B).to(absent_B.dtype)
    # log(mass - p_y); expm1 keeps the digits where p_y is nearly zero compared with the mass
    log_less_B = log_mass_B + torch.log(-torch.expm1(torch.clamp(log_p_y_B - log_mass_B, max=0)))
    log_others_mass_B = torch.where(y_present_B, log_mass_B, log_less_B)
    log_others_mass_B = log_others_mass_B.masked_fill(others_count_B < 1, -torch.inf)
    log_others_BK = log_p_BK.masked_fill(is_y_BK, -torch.inf)
    log_rest_B = torch.logaddexp(log_others_BK.logsumexp(1), log_others_mass_B)
    q_BK = (log_others_BK - log_rest_B[:, None]).exp()
    each_B = (log_others_mass_B - log_rest_B).exp() / others_count_B.clamp(min=1)
    weights_BK = torch.where(used_BK & ~is_y_BK, q_BK - each_B[:, None], 0.0)
    log_s_rest_B = log_absent_mass(log_s_BC, y_B1)
    # a single gather for stored classes and label, so that its gradient is a single (B, C) scatter
    log_s_BK = log_s_BC.gather(1, torch.cat([teacher.class_ids, y_B1], 1))
    log_s_y_B = log_s_BK[:, -1]
    read_B = (weights_BK * log_s_BK[:, :-1]).sum(1) + each_B * (log_s_BC.sum(1) - log_s_y_B)
    return _Parts(
        log_p_y=log_p_y_B,
        log_p_rest=log_rest_B,
        log_s_y=log_s_y_B,
        log_s_rest=log_s_rest_B,
        p_y_at_one=log_p_y_B.exp(),
        cross_entropy=log_s_rest_B - read_B,
        entropy=torch.special.entr(q_BK).sum(1) + others_count_B * torch.special.entr(each_B),
    )


def _absent_label(teacher: SparseLogits, log_mass_B: Tensor, absent_B: Tensor) -> Tensor:
    """Return the log-probability of an absent label: as stored, or an equal share of the tail."""
    log_share_B = log_mass_B - absent_B.clamp(min=1).log()
    if teacher.label_log_probs is None:
        return log_share_B
    stored_B = teacher.label_log_probs.to(log_mass_B.dtype)
    return torch.where(torch.isnan(stored_B), log_share_B, torch.minimum(stored_B, log_mass_B))
