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

from logitcache.batch import Outputs, SparseLogits
from logitcache.encoding.tail import quadratic
from logitcache.objectives.alignment import wide
from logitcache.objectives.sparse_cross_entropy import cross_bucket, cross_spread
from logitcache.objectives.term import AskingTermConfig
from logitcache.objectives.weights import other_classes, teacher_weights

if TYPE_CHECKING:
    from torch import Tensor

    from logitcache.batch import DenseLogits, TargetBatch, TeacherLogits

__all__ = ["Soft", "SoftConfig", "Tail", "soft_divergence"]

Tail = Literal["uniform", "bucket", "renorm"]

_UNUSED = -1e30  # log of zero; unlike -inf, its product with 0 is 0 and not NaN


class SoftConfig(AskingTermConfig):
    """Knowledge distillation: Kullback-Leibler divergence from teachers.

    Attributes:
        weight: Weight of this term in the sum.
        head: Student layer with the logits; the output of the network by default.
        teachers: Weight of each teacher by name; by default equal weights that sum to one.
        temperature: Temperature T; sparse targets are encoded for T = 1.
        tail: Treatment of the probability of the classes that sparse targets do not store:
            ``uniform`` spreads it over them, ``bucket`` compares it as one class, ``renorm`` drops
            it (with a relative error of the gradient of 0.3 to 0.9 at T = 1, see
            ``docs/objectives.md``).
    """

    temperature: float = Field(default=1.0, gt=0)
    tail: Tail = "uniform"


class Soft:
    """Kullback-Leibler divergence of the student from each teacher, in nats.

    ::

        L = T^2 sum_n w_n mean over rows of sum_c q_c (log q_c - log softmax(z / T)_c)

    with q the n-th teacher's distribution at temperature T.

    Args:
        config: Settings of the term.
    """

    def __init__(self, config: SoftConfig | None = None) -> None:
        self.config = config or SoftConfig()

    def __call__(self, outputs: Outputs | Tensor, targets: TargetBatch) -> Tensor:
        """Return the loss, a scalar.

        Raises:
            UsageError: A teacher of the configuration is not in the batch.
        """
        logits_BC = Outputs.of(outputs).logits_of(self.config.head)
        weights = teacher_weights(self.config.teachers, targets.teachers)
        total = logits_BC.new_zeros((), dtype=torch.float32)
        for name, weight in weights.items():
            rows_B = soft_divergence(
                logits_BC,
                targets.teachers[name],
                temperature=self.config.temperature,
                tail=self.config.tail,
            )
            total = total + weight * rows_B.mean()
        return total


def soft_divergence(
    logits_BC: Tensor, teacher: TeacherLogits, *, temperature: float = 1.0, tail: Tail = "uniform"
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

    Returns:
        (B,), differentiable once with respect to the logits.
    """
    if logits_BC.shape[1] != teacher.num_classes:
        raise other_classes(logits_BC.shape[1], teacher.num_classes)
    scaled_BC = wide(logits_BC) if temperature == 1.0 else wide(logits_BC) / temperature
    if isinstance(teacher, SparseLogits):
        divergence_B = _sparse_divergence(scaled_BC, teacher, 1.0 / temperature, tail)
    else:
        divergence_B = _dense_divergence(scaled_BC, teacher, 1.0 / temperature)
    return divergence_B if temperature == 1.0 else temperature**2 * divergence_B


def _dense_divergence(scaled_BC: Tensor, teacher: DenseLogits, b: float) -> Tensor:
    log_s_BC = functional.log_softmax(scaled_BC, dim=1)
    log_q_BC = teacher.log_probs.to(log_s_BC.dtype)
    if b != 1.0:
        log_q_BC = functional.log_softmax(b * log_q_BC, dim=1)
    terms_BC = functional.kl_div(log_s_BC, log_q_BC, reduction="none", log_target=True)
    return terms_BC.sum(1)


def _sparse_divergence(scaled_BC: Tensor, teacher: SparseLogits, b: float, tail: Tail) -> Tensor:
    """Return KL(teacher || student) of every row from the student's logits over T."""
    log_p_BK = teacher.log_probs.to(scaled_BC.dtype).clamp(min=_UNUSED)
    used_BK = (log_p_BK - _UNUSED).sign()  # 1 or 0; arithmetic takes half the time of bool masks
    absent_B = teacher.num_classes - used_BK.sum(1)
    log_q_BK, log_mass_B = _at_temperature(log_p_BK, teacher.tail, absent_B, b, tail)
    q_BK, mass_B = log_q_BK.exp(), log_mass_B.exp()
    negative_entropy_B = (q_BK * log_q_BK).sum(1).addcmul_(mass_B, log_mass_B)
    ids_BK = teacher.class_ids
    if tail == "bucket":
        return negative_entropy_B - cross_bucket(scaled_BC, ids_BK, used_BK, q_BK, mass_B)
    if tail == "renorm":
        return negative_entropy_B - cross_spread(scaled_BC, ids_BK, q_BK, None)
    at_least_one_B = absent_B.clamp(min=1)  # where no class is absent, the mass is 0
    spread_B = mass_B / at_least_one_B
    # the spread is added to every class below, so it is subtracted at the present ones
    weights_BK = q_BK - used_BK * spread_B[:, None]
    read_B = cross_spread(scaled_BC, ids_BK, weights_BK, spread_B)
    return negative_entropy_B - mass_B * at_least_one_B.log() - read_B


def _at_temperature(
    log_p_BK: Tensor, tail_B2: Tensor, absent_B: Tensor, b: float, tail: Tail
) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities of present classes and of all absent ones at T = 1 / b."""
    if tail == "renorm":
        return functional.log_softmax(b * log_p_BK, 1), torch.full_like(log_p_BK[:, 0], _UNUSED)
    tail_B2 = tail_B2.to(log_p_BK.dtype)
    if b == 1.0:
        return log_p_BK, tail_B2[:, 0]
    log_p_BK = b * log_p_BK
    log_mass_B = _log_tail_mass(tail_B2, absent_B, b)
    log_z_B1 = torch.logsumexp(torch.cat([log_p_BK, log_mass_B[:, None]], 1), 1, keepdim=True)
    return log_p_BK - log_z_B1, log_mass_B - log_z_B1[:, 0]


def _log_tail_mass(tail_B2: Tensor, absent_B: Tensor, b: float) -> Tensor:
    """Return log M(b) from the quadratic through b = 0, 1/4 and 1; log 0 without absent classes."""
    through_0, through_quarter, through_1 = quadratic(b)
    log_mass_B = (
        through_0 * absent_B.clamp(min=1).log()
        + through_quarter * tail_B2[:, 1]
        + through_1 * tail_B2[:, 0]
    )
    return log_mass_B.masked_fill(absent_B == 0, _UNUSED)
