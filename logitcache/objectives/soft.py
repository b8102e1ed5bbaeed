"""Knowledge distillation from dense or sparse teacher distributions.

Source: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, section 2 (temperature
and its factor T^2); the uniform tail is TinyViT's (Wu et al., ECCV 2022, section 3.1), at T = 1.

Shapes: B batch, C classes, K stored classes; b = 1 / T; t = number of absent classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field
from torch.nn import functional

from logitcache.batch import Outputs, SigmoidLogits, SparseLogits
from logitcache.encoding.tail import quadratic
from logitcache.objectives.alignment import wide
from logitcache.objectives.outside import Outside, show_a_class, within_classes
from logitcache.objectives.sparse_cross_entropy import (
    divergence_from_bucket,
    divergence_from_spread,
    may_read,
)
from logitcache.objectives.term import AskingTermConfig
from logitcache.objectives.weights import (
    check_one_head,
    logits_of_teachers,
    other_classes,
    teacher_weights,
)

if TYPE_CHECKING:
    from torch import Tensor

    from logitcache.batch import DenseLogits, EncodedLogits, TargetBatch, TeacherLogits

__all__ = ["Soft", "SoftConfig", "Tail", "soft_divergence"]

Tail = Literal["uniform", "bucket", "renorm"]

_UNUSED = -(2.0**100)  # log of zero; unlike -inf, its product with 0 is 0 and not NaN


class SoftConfig(AskingTermConfig):
    """Knowledge distillation: Kullback-Leibler divergence from teachers.

    Attributes:
        weight: Weight of this term in the sum.
        head: Student layer with the logits; the output of the network by default.
        teachers: Weight of each teacher by name, or the file of ``logitcache tools fit-weights``
            with these; by default equal weights that sum to one.
        logits: Cached layer with the logits of a teacher, by name of the teacher, such as a further
            classifier; for the others, and by default, its output. Without ``teachers``, these are
            the teachers of the term.
        temperature: Temperature T; sparse targets are encoded for T = 1.
        tail: Treatment of the probability of the classes that sparse targets do not store:
            ``uniform`` spreads it over them, ``bucket`` compares it as one class, ``renorm`` drops
            it (with a relative error of the gradient of 0.3 to 0.9 at T = 1, see
            ``docs/objectives.md``).
        outside: Treatment of the probability of the teacher's classes that a class map leaves out:
            ``renorm`` drops it, ``weight`` weights each image by the probability of its classes,
            ``uniform`` spreads it over them, ``auto`` is ``renorm`` for images with a label among
            the student's classes and ``weight`` for all others.
    """

    temperature: float = Field(default=1.0, gt=0)
    tail: Tail = "uniform"
    outside: Outside = "auto"


class Soft:
    """Kullback-Leibler divergence of the student from each teacher, in nats.

    ::

        L = T^2 sum_n w_n mean over rows of sum_c q_c (log q_c - log softmax(z / T)_c)

    with q the n-th teacher's distribution at temperature T. Of teachers with ``head: sigmoid``, the
    sum of binary divergences, with q_c = sigmoid(t_c / T) and s_c = sigmoid(z_c / T)::

        sum_c q_c log(q_c / s_c) + (1 - q_c) log((1 - q_c) / (1 - s_c))

    Args:
        config: Settings of the term.
    """

    def __init__(self, config: SoftConfig | None = None) -> None:
        self.config = config or SoftConfig()

    def __call__(self, outputs: Outputs | Tensor, targets: TargetBatch) -> Tensor:
        """Return the loss, a scalar.

        Raises:
            UsageError: A teacher of the configuration is not in the batch, or some have a softmax
                and others a sigmoid.
        """
        logits_BC = Outputs.of(outputs).logits_of(self.config.head)
        teachers = logits_of_teachers(self.config, targets)
        weights = teacher_weights(self.config.teachers, teachers)
        check_one_head(weights, teachers)
        total = logits_BC.new_zeros((), dtype=torch.float32)
        for name, weight in weights.items():
            rows_B = soft_divergence(
                logits_BC,
                teachers[name],
                temperature=self.config.temperature,
                tail=self.config.tail,
                outside=self.config.outside,
                known_B=show_a_class(targets),
            )
            total = total + weight * rows_B.mean()
        return total


def soft_divergence(
    logits_BC: Tensor,
    teacher: TeacherLogits,
    *,
    temperature: float = 1.0,
    tail: Tail = "uniform",
    outside: Outside = "auto",
    known_B: Tensor | None = None,
) -> Tensor:
    """Return T^2 KL(teacher || student) of every row, in nats.

    At temperature T the present classes have the unnormalized probabilities p^b, and the absent
    ones together M(b), whose logarithm is the quadratic in b through log M(0) = log t, log M(1/4)
    and log M(1).

    Args:
        logits_BC: Logits of the student, in any float dtype; computed in float32 or wider.
        teacher: Sparse or dense targets.
        temperature: T > 0.
        tail: For sparse targets, see :class:`SoftConfig`.
        outside: For targets with a class map, see :func:`.within_classes`.
        known_B: Which images are known to show a class of the student, bool (B,); None for none.

    Returns:
        (B,), differentiable once with respect to the logits.
    """
    if logits_BC.shape[1] != teacher.num_classes:
        raise other_classes(logits_BC.shape[1], teacher.num_classes)
    b = 1.0 / temperature
    if isinstance(teacher, SparseLogits):
        divergence_B = _sparse_divergence(wide(logits_BC), teacher, b, tail)
    elif isinstance(teacher, SigmoidLogits):
        divergence_B = _binary_divergence(wide(logits_BC), teacher, b)
    else:
        divergence_B = _dense_divergence(wide(logits_BC), teacher, b, outside, known_B)
    return divergence_B if temperature == 1.0 else temperature**2 * divergence_B


def _binary_divergence(logits_BC: Tensor, teacher: SigmoidLogits, b: float) -> Tensor:
    """Return the sum of the KL divergences of all classes, each of presence and absence."""
    t_BC, z_BC = b * teacher.logits.to(logits_BC.dtype), b * logits_BC
    q_BC = t_BC.sigmoid()
    cross_BC = functional.binary_cross_entropy_with_logits(z_BC, q_BC, reduction="none")
    own_BC = functional.binary_cross_entropy_with_logits(t_BC, q_BC, reduction="none")
    return (cross_BC - own_BC).sum(1)


def _dense_divergence(
    logits_BC: Tensor,
    teacher: DenseLogits | EncodedLogits,
    b: float,
    outside: Outside,
    known_B: Tensor | None,
) -> Tensor:
    log_s_BC = functional.log_softmax(logits_BC if b == 1.0 else b * logits_BC, dim=1)
    if teacher.outside is not None:
        log_q_BC, weight_B = within_classes(teacher, b, outside, log_s_BC.dtype, known_B)
        divergence_B = functional.kl_div(log_s_BC, log_q_BC, reduction="none", log_target=True).sum(
            1
        )
        return divergence_B if weight_B is None else weight_B * divergence_B
    log_q_BC = teacher.log_probs.to(log_s_BC.dtype)
    if b != 1.0:
        log_q_BC = functional.log_softmax(b * log_q_BC, dim=1)
    terms_BC = functional.kl_div(log_s_BC, log_q_BC, reduction="none", log_target=True)
    return terms_BC.sum(1)


def _sparse_divergence(logits_BC: Tensor, teacher: SparseLogits, b: float, tail: Tail) -> Tensor:
    """Return KL(teacher || student) of every row at temperature 1 / b.

    All that depends on targets alone is small, and launching a kernel takes longer than running it:
    nothing is computed that the tail does not need.
    """
    ids_BK = teacher.class_ids
    log_p_BK = teacher.log_probs.to(logits_BC.dtype)
    if tail == "renorm":
        log_q_BK = functional.log_softmax(b * log_p_BK.clamp(min=_UNUSED), 1)
        q_BK = log_q_BK.exp()
        return divergence_from_spread(logits_BC, b, ids_BK, q_BK, log_q_BK * q_BK)
    log_p_BK, used_BK, absent_B = _counted(log_p_BK, teacher.num_classes)
    log_q_BK, log_mass_B = _at_temperature(log_p_BK, teacher, used_BK, absent_B, b)
    q_BK = log_q_BK.exp()
    own_BK = log_q_BK * q_BK
    if tail == "bucket":
        return divergence_from_bucket(logits_BC, b, ids_BK, used_BK, q_BK, own_BK, log_mass_B)
    log_spread_B = log_mass_B - absent_B.log()  # where no class is absent, the mass is 0
    spread_B = log_spread_B.exp()
    at_present = spread_B[:, None] if used_BK is None else used_BK.mul_(spread_B[:, None])
    # the spread is subtracted from every class below, so it is added at the present ones
    weights_BK = q_BK.sub_(at_present)
    return divergence_from_spread(
        logits_BC, b, ids_BK, weights_BK, own_BK, spread_B, absent_B * log_spread_B
    )


def _counted(log_p_BK: Tensor, num_classes: int) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return finite log-probabilities, which entries are used, and how many classes are absent.

    Used entries are 1 and unused ones 0, since arithmetic takes half the time of bool masks; None
    if all are used, as in most batches, and if that may be read. The number of absent classes,
    at least 1, is (B,), or a scalar for None.
    """
    top_k = log_p_BK.shape[1]
    if top_k < num_classes and may_read(log_p_BK) and float(log_p_BK.min()) > -torch.inf:
        return log_p_BK, None, log_p_BK.new_full((), num_classes - top_k)
    finite_BK = log_p_BK.clamp(min=_UNUSED)
    used_BK = torch.rsub(finite_BK, 1.0, alpha=1.0 / _UNUSED)
    absent_B = torch.rsub(used_BK.sum(1), float(num_classes))
    return finite_BK, used_BK, absent_B if top_k < num_classes else absent_B.clamp_(min=1)


def _at_temperature(
    log_p_BK: Tensor, teacher: SparseLogits, used_BK: Tensor | None, absent_B: Tensor, b: float
) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities of present classes and of all absent ones at T = 1 / b."""
    tail_B2 = teacher.tail.to(log_p_BK.dtype)
    if b == 1.0:
        return log_p_BK, tail_B2[:, 0]
    log_p_BK = b * log_p_BK
    log_mass_B = _log_tail_mass(tail_B2, absent_B, b)
    if used_BK is not None:  # rows without absent classes
        log_mass_B = log_mass_B.masked_fill(used_BK.sum(1) == teacher.num_classes, _UNUSED)
    log_z_B1 = torch.logsumexp(torch.cat([log_p_BK, log_mass_B[:, None]], 1), 1, keepdim=True)
    return log_p_BK - log_z_B1, log_mass_B - log_z_B1[:, 0]


def _log_tail_mass(tail_B2: Tensor, absent_B: Tensor, b: float) -> Tensor:
    """Return log M(b) from the quadratic through b = 0, 1/4 and 1."""
    through_0, through_quarter, through_1 = quadratic(b)
    log_mass_B: Tensor = (
        through_0 * absent_B.log() + through_quarter * tail_B2[:, 1] + through_1 * tail_B2[:, 0]
    )
    return log_mass_B
