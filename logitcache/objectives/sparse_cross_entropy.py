"""Cross-entropy of sparse targets, and the mass of absent classes, with explicit gradients.

Autograd would run about twenty more kernels for the same sums, and at a thousand classes launching
each takes longer than running it. Here the student's softmax is computed once, and the gradient,
the weighted softmax minus the target, is one pass over it and one scatter.

Shapes: B batch, C classes, K stored classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["cross_bucket", "cross_spread", "log_absent_mass"]

_ROWS_AT_ONCE = 32


def cross_spread(
    logits_BC: Tensor, ids_BK: Tensor, weights_BK: Tensor, spread_B: Tensor | None
) -> Tensor:
    """Return sum_k w_k log s[id_k] + e sum_c log s[c] of every row, s = softmax(logits).

    Args:
        logits_BC: Logits of the student, float32 or wider.
        ids_BK: Indices of the classes with individual weights.
        weights_BK: Individual weights w, without gradient; zero for unused entries.
        spread_B: Weight e of every class, without gradient; None for zero.

    Returns:
        (B,), differentiable once with respect to ``logits_BC``.
    """
    read_B: Tensor = _Spread.apply(logits_BC, ids_BK, weights_BK, spread_B)
    return read_B


def cross_bucket(
    logits_BC: Tensor, ids_BK: Tensor, used_BK: Tensor, q_BK: Tensor, mass_B: Tensor
) -> Tensor:
    """Return sum_k q_k log s[id_k] + m log sum_absent s[c] of every row, s = softmax(logits).

    Args:
        logits_BC: Logits of the student, float32 or wider.
        ids_BK: Indices of the present classes; all others are absent.
        used_BK: 1 for entries with a present class, 0 for unused entries, which repeat a class.
        q_BK: Probabilities q of the present classes, without gradient; zero for unused entries.
        mass_B: Probability m of all absent classes, without gradient; zero if there are none.

    Returns:
        (B,), differentiable once with respect to ``logits_BC``.
    """
    read_B: Tensor = _Bucket.apply(logits_BC, ids_BK, used_BK, q_BK, mass_B)
    return read_B


def log_absent_mass(log_s_BC: Tensor, ids_BK: Tensor) -> Tensor:
    """Return log sum_absent s[c] of every row; 0 if no class is absent or their mass is zero.

    Args:
        log_s_BC: Log-probabilities of the student.
        ids_BK: Indices of the present classes; all others are absent.

    Returns:
        (B,), differentiable once with respect to ``log_s_BC``.
    """
    log_mass_B: Tensor = _AbsentMass.apply(log_s_BC, ids_BK)
    return log_mass_B


class _Spread(torch.autograd.Function):
    """Gradient: w_k at its class, plus e everywhere, minus (sum of all weights) s."""

    @staticmethod
    def forward(
        ctx: Any, logits_BC: Tensor, ids_BK: Tensor, weights_BK: Tensor, spread_B: Tensor | None
    ) -> Tensor:
        classes = logits_BC.shape[1]
        s_BC, top_B, log_top_B = _softmax(logits_BC)
        total_B = weights_BK.sum(1)
        # log s = (logit - top) + log s[top]: differences of logits are exact where a logarithm of a
        # small probability would be -inf
        read_B = (weights_BK * (logits_BC.gather(1, ids_BK) - top_B[:, None])).sum(1)
        if spread_B is not None:
            total_B.add_(spread_B, alpha=classes)
            read_B.addcmul_(spread_B, logits_BC.sum(1).sub_(top_B, alpha=classes))
        read_B.addcmul_(total_B, log_top_B)
        ctx.save_for_backward(logits_BC, ids_BK, weights_BK, spread_B, total_B)
        ctx.s_BC = s_BC  # not saved_tensors: backward writes its result into this buffer
        return read_B

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_B: Tensor) -> tuple[Tensor, None, None, None]:
        logits_BC, ids_BK, weights_BK, spread_B, total_B = ctx.saved_tensors
        grad_BC = _taken(ctx, logits_BC).mul_((-grad_B * total_B)[:, None])
        if spread_B is not None:
            grad_BC.add_((grad_B * spread_B)[:, None])
        grad_BC.scatter_add_(1, ids_BK, weights_BK * grad_B[:, None])
        return grad_BC, None, None, None


class _Bucket(torch.autograd.Function):
    """Gradient: q_k - (sum of q and m) s at present classes; absent ones divide the remainder.

    They divide it by a softmax over the absent classes alone: their mass may be too small to be
    computed as one minus that of the present classes.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits_BC: Tensor,
        ids_BK: Tensor,
        used_BK: Tensor,
        q_BK: Tensor,
        mass_B: Tensor,
    ) -> Tensor:
        absent_BC = logits_BC.scatter(1, ids_BK, -torch.inf)
        full_B = _without_absent(absent_BC, used_BK)
        shared_BC, top_B, log_top_B = _softmax(absent_BC)
        log_absent_B = top_B - log_top_B
        present_BK = logits_BC.gather(1, ids_BK)
        # from here to the end buffers are reused in place: each is read for the last time where it
        # is overwritten
        top_B1 = present_BK.amax(1, keepdim=True)
        s_BK = (present_BK - top_B1).exp_().mul_(used_BK)
        log_z_B = torch.logaddexp(
            s_BK.sum(1).log_().add_(top_B1[:, 0]),
            log_absent_B if full_B is None else log_absent_B.masked_fill(full_B, -torch.inf),
        )
        read_B = (q_BK * present_BK.sub_(log_z_B[:, None])).sum(1)
        log_s_absent_B = log_absent_B.sub_(log_z_B)
        read_B.addcmul_(mass_B, log_s_absent_B)
        total_B = q_BK.sum(1).add_(mass_B)
        s_BK.mul_(top_B1.sub_(log_z_B[:, None]).exp_().mul_(total_B[:, None]))
        at_present_BK = torch.sub(q_BK, s_BK, out=s_BK)
        to_absent_B = mass_B - total_B * log_s_absent_B.exp_()
        if full_B is not None:
            to_absent_B.masked_fill_(full_B, 0.0)
        ctx.save_for_backward(shared_BC, ids_BK, at_present_BK, to_absent_B)
        return read_B

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_B: Tensor) -> tuple[Tensor, None, None, None, None]:
        shared_BC, ids_BK, at_present_BK, to_absent_B = ctx.saved_tensors
        grad_BC = shared_BC * (grad_B * to_absent_B)[:, None]
        # added, not set: unused entries repeat a present class, with a gradient of zero
        grad_BC.scatter_add_(1, ids_BK, at_present_BK * grad_B[:, None])
        return grad_BC, None, None, None, None


class _AbsentMass(torch.autograd.Function):
    """Gradient: the softmax over the absent classes, zero at present ones.

    The forward pass takes a few rows at a time, so that the masked copy stays in the processor
    cache and no second (B, C) is saved; autograd would save it and allocate a third.
    """

    @staticmethod
    def forward(ctx: Any, log_s_BC: Tensor, ids_BK: Tensor) -> Tensor:
        rows = (torch.split(values, _ROWS_AT_ONCE) for values in (log_s_BC, ids_BK))
        parts = zip(*rows, strict=True)
        log_mass_B = torch.cat([s.scatter(1, ids, -torch.inf).logsumexp(1) for s, ids in parts])
        log_mass_B.masked_fill_(log_mass_B == -torch.inf, 0.0)  # -inf minus -inf would be NaN
        ctx.save_for_backward(log_s_BC, ids_BK, log_mass_B)
        return log_mass_B

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_B: Tensor) -> tuple[Tensor, None]:
        log_s_BC, ids_BK, log_mass_B = ctx.saved_tensors
        grad_BC = (log_s_BC - log_mass_B[:, None]).exp_().mul_(grad_B[:, None])
        return grad_BC.scatter_(1, ids_BK, 0.0), None


def _taken(ctx: Any, logits_BC: Tensor) -> Tensor:
    """Return the softmax as a buffer to overwrite; a second backward pass computes it again."""
    s_BC, ctx.s_BC = ctx.s_BC, None
    return logits_BC.softmax(1) if s_BC is None else s_BC


def _softmax(logits_BC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the softmax, the largest logit, and the log of the largest probability.

    The difference of the last two is the log-sum-exp: two cheap reductions instead of another
    exponential. The largest probability is at least 1 / C, so its logarithm is finite.
    """
    s_BC = logits_BC.softmax(1)
    return s_BC, logits_BC.amax(1), s_BC.amax(1).log_()


def _without_absent(absent_BC: Tensor, used_BK: Tensor) -> Tensor | None:
    """Return the rows without absent classes, and replace their -inf by 0 for a finite softmax."""
    if used_BK.shape[1] < absent_BC.shape[1]:
        return None
    full_B: Tensor = used_BK.sum(1) == absent_BC.shape[1]
    absent_BC.masked_fill_(full_B[:, None], 0.0)
    return full_B
