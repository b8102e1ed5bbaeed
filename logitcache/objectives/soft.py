"""What teachers said of all classes, without ever building a dense teacher from a sparse one.

Source: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, section 2 (temperature
and its factor T^2); the uniform tail is TinyViT's (Wu et al., ECCV 2022, section 3.1), at T = 1.

Shapes: B batch, C classes, K stored classes; b = 1 / T; t = number of absent classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field
from torch.autograd.function import once_differentiable
from torch.nn import functional

from logitcache.batch import SparseLogits
from logitcache.config import Config
from logitcache.encoding.tail import quadratic
from logitcache.errors import UsageError, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from logitcache.batch import DenseLogits, TargetBatch, TeacherLogits

__all__ = ["Soft", "SoftConfig", "Tail", "soft_divergence"]

Tail = Literal["uniform", "bucket", "renorm"]

_ROWS_AT_ONCE = 32


class SoftConfig(Config):
    """Divergence from teachers.

    Attributes:
        weight: Of this term in the sum.
        teachers: Weight of each teacher by name; all alike, summing to one, by default.
        temperature: T; sparse targets are made for T = 1.
        tail: How the mass of the absent classes of sparse targets is treated: ``uniform`` spreads
            it over them, ``bucket`` compares it as one class, ``renorm`` drops it (its gradient is
            off by 0.3 to 0.9 at T = 1, see ``docs/objectives.md``).
    """

    weight: float = Field(default=1.0, ge=0)
    teachers: dict[str, float] | None = Field(default=None, min_length=1)
    temperature: float = Field(default=1.0, gt=0)
    tail: Tail = "uniform"


class Soft:
    """Kullback-Leibler divergence of the student from each teacher, in nats.

    ::

        L = T^2 sum_n w_n mean over rows of sum_c q_c (log q_c - log softmax(z / T)_c)

    with q the n-th teacher's distribution at temperature T.

    Args:
        config: Weights, temperature and tail.
    """

    def __init__(self, config: SoftConfig | None = None) -> None:
        self.config = config or SoftConfig()

    def __call__(self, logits_BC: Tensor, targets: TargetBatch) -> Tensor:
        """Return the loss, a scalar.

        Raises:
            UsageError: A teacher that is asked for is not in the batch.
        """
        total = logits_BC.new_zeros((), dtype=torch.float32)
        for name, weight in self._weights(targets.teachers).items():
            rows_B = soft_divergence(
                logits_BC,
                targets.teachers[name],
                temperature=self.config.temperature,
                tail=self.config.tail,
            )
            total = total + weight * rows_B.mean()
        return total

    def _weights(self, present: Mapping[str, TeacherLogits]) -> Mapping[str, float]:
        weights = self.config.teachers or {name: 1 / len(present) for name in present}
        if not weights:
            raise UsageError("no teacher to learn from", hint="give a cache, or drop soft")
        for name in weights:
            if name not in present:
                raise UsageError(f"no teacher {name!r} in this batch", hint=nearest(name, present))
        return weights


def soft_divergence(
    logits_BC: Tensor, teacher: TeacherLogits, *, temperature: float = 1.0, tail: Tail = "uniform"
) -> Tensor:
    """Return T^2 KL(teacher || student) of every row, in nats.

    At temperature T the present classes weigh p^b and the absent ones together M(b), whose
    logarithm is the quadratic in b through log M(0) = log t, log M(1/4) and log M(1).

    Args:
        logits_BC: The student's, in any float dtype; computed in float32 or wider.
        teacher: Sparse or dense targets.
        temperature: T > 0.
        tail: For sparse targets, see :class:`SoftConfig`.

    Returns:
        (B,), differentiable once with respect to the logits.
    """
    if logits_BC.shape[1] != teacher.num_classes:
        raise UsageError(
            "student and teacher have different classes",
            expected=f"{teacher.num_classes} logits",
            got=f"{logits_BC.shape[1]} logits",
            hint="set the student's num_classes, or precompute with a class_map",
        )
    wide = logits_BC if logits_BC.dtype == torch.float64 else logits_BC.float()
    scaled_BC = wide if temperature == 1.0 else wide / temperature
    log_s_BC = functional.log_softmax(scaled_BC, dim=1)
    if isinstance(teacher, SparseLogits):
        divergence_B = _sparse_divergence(log_s_BC, teacher, 1.0 / temperature, tail)
    else:
        divergence_B = _dense_divergence(log_s_BC, teacher, 1.0 / temperature)
    return divergence_B if temperature == 1.0 else temperature**2 * divergence_B


def _dense_divergence(log_s_BC: Tensor, teacher: DenseLogits, b: float) -> Tensor:
    log_q_BC = teacher.log_probs.to(log_s_BC.dtype)
    if b != 1.0:
        log_q_BC = functional.log_softmax(b * log_q_BC, dim=1)
    terms_BC = functional.kl_div(log_s_BC, log_q_BC, reduction="none", log_target=True)
    return terms_BC.sum(1)


def _sparse_divergence(log_s_BC: Tensor, teacher: SparseLogits, b: float, tail: Tail) -> Tensor:
    """Return KL(teacher || student) of every row from the student's log-probabilities."""
    used_BK = teacher.log_probs > -torch.inf  # one kernel; isfinite takes four
    absent_B = teacher.num_classes - used_BK.sum(1, dtype=log_s_BC.dtype)
    log_q_BK, log_mass_B = _at_temperature(teacher, absent_B, b, tail, log_s_BC.dtype)
    q_BK, mass_B = log_q_BK.exp(), log_mass_B.exp()
    negative_entropy_B = -torch.special.entr(q_BK).sum(1) - torch.special.entr(mass_B)
    if tail == "bucket":
        read_B = _read_out(log_s_BC, teacher.class_ids, q_BK, bucket_B=mass_B)
        out_B: Tensor = negative_entropy_B - read_B
        return out_B
    at_least_one_B = absent_B.clamp(min=1)
    spread_B = mass_B / at_least_one_B
    weights_BK = torch.where(used_BK, q_BK - spread_B[:, None], 0.0)
    read_B = _read_out(log_s_BC, teacher.class_ids, weights_BK, everywhere_B=spread_B)
    divergence_B: Tensor = negative_entropy_B - mass_B * at_least_one_B.log() - read_B
    return divergence_B


def _at_temperature(
    teacher: SparseLogits, absent_B: Tensor, b: float, tail: Tail, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return the log-probability of each present class, and of all absent ones, at T = 1 / b."""
    log_p_BK, tail_B2 = teacher.log_probs.to(dtype), teacher.tail.to(dtype)
    if tail == "renorm":
        return functional.log_softmax(b * log_p_BK, 1), torch.full_like(tail_B2[:, 0], -torch.inf)
    if b == 1.0:
        return log_p_BK, tail_B2[:, 0]
    log_p_BK = b * log_p_BK
    log_mass_B = _log_tail_mass(tail_B2, absent_B, b)
    log_z_B1 = torch.logsumexp(torch.cat([log_p_BK, log_mass_B[:, None]], 1), 1, keepdim=True)
    return log_p_BK - log_z_B1, log_mass_B - log_z_B1[:, 0]


def _log_tail_mass(tail_B2: Tensor, absent_B: Tensor, b: float) -> Tensor:
    """Return log M(b) by the quadratic through b = 0, 1/4 and 1; -inf where nothing is absent."""
    through_0, through_quarter, through_1 = quadratic(b)
    log_mass_B = (
        through_0 * absent_B.clamp(min=1).log()
        + through_quarter * tail_B2[:, 1]
        + through_1 * tail_B2[:, 0]
    )
    return log_mass_B.masked_fill(absent_B == 0, -torch.inf)


def _read_out(
    log_s_BC: Tensor,
    ids_BK: Tensor,
    weights_BK: Tensor,
    *,
    everywhere_B: Tensor | None = None,
    bucket_B: Tensor | None = None,
) -> Tensor:
    """Return sum_k w_k log s[id_k] + e sum_c log s[c] + b log sum_absent s[c] of every row."""
    read_B: Tensor = _ReadOut.apply(log_s_BC, ids_BK, weights_BK, everywhere_B, bucket_B)
    return read_B


class _ReadOut(torch.autograd.Function):
    """What a sparse target asks of a dense student.

    Its gradient is one (B, C) buffer; plain autograd makes one for each of the three sums.
    """

    @staticmethod
    def forward(
        ctx: Any,
        log_s_BC: Tensor,
        ids_BK: Tensor,
        weights_BK: Tensor,
        everywhere_B: Tensor | None,
        bucket_B: Tensor | None,
    ) -> Tensor:
        ctx.num_classes = log_s_BC.shape[1]
        read_B = (weights_BK * log_s_BC.gather(1, ids_BK)).sum(1)
        if everywhere_B is not None:
            read_B.addcmul_(everywhere_B, log_s_BC.sum(1))
        if bucket_B is None:
            ctx.save_for_backward(ids_BK, weights_BK, everywhere_B, None, None, None)
            return read_B
        log_absent_B = _log_absent(log_s_BC, ids_BK)
        ctx.save_for_backward(ids_BK, weights_BK, None, bucket_B, log_absent_B, log_s_BC)
        return read_B.addcmul_(bucket_B, log_absent_B)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_B: Tensor) -> tuple[Tensor, None, None, None, None]:
        ids_BK, weights_BK, everywhere_B, bucket_B, log_absent_B, log_s_BC = ctx.saved_tensors
        shape = (len(ids_BK), ctx.num_classes)
        if bucket_B is not None:
            grad_BC = (log_s_BC - log_absent_B[:, None]).exp_().mul_((bucket_B * grad_B)[:, None])
            grad_BC.scatter_(1, ids_BK, 0.0)
        elif everywhere_B is not None:
            grad_BC = (everywhere_B * grad_B)[:, None].expand(shape).contiguous()
        else:
            grad_BC = weights_BK.new_zeros(shape)
        grad_BC.scatter_add_(1, ids_BK, weights_BK * grad_B[:, None])
        return grad_BC, None, None, None, None


def _log_absent(log_s_BC: Tensor, ids_BK: Tensor) -> Tensor:
    """Return the log of the student's mass on absent classes; 0 where nothing is absent.

    A few rows at a time, so that no second (B, C) is made.
    """
    parts = zip(*(torch.split(t, _ROWS_AT_ONCE) for t in (log_s_BC, ids_BK)), strict=True)
    log_absent_B = torch.cat([s.scatter(1, ids, -torch.inf).logsumexp(1) for s, ids in parts])
    # where nothing is absent the student's mass is zero, and so is the teacher's
    return log_absent_B.masked_fill_(log_absent_B == -torch.inf, 0.0)
