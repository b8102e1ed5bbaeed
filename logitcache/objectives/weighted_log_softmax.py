"""What sparse targets ask of a dense student: a few classes, all of them, or all the others.

Shapes: B batch, C classes, K classes that are read one by one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["read_out"]

_ROWS_AT_ONCE = 32


def read_out(
    log_s_BC: Tensor,
    ids_BK: Tensor,
    weights_BK: Tensor,
    *,
    everywhere_B: Tensor | None = None,
    bucket_B: Tensor | None = None,
) -> Tensor:
    """Return sum_k w_k log s[id_k] + e sum_c log s[c] + b log sum_absent s[c] of every row.

    Args:
        log_s_BC: The student's log-probabilities.
        ids_BK: Classes that are read one by one; all others are absent.
        weights_BK: w, without gradient; zero for an entry that is not used.
        everywhere_B: e, without gradient; zero if it is left out.
        bucket_B: b, without gradient; zero if it is left out. Not together with ``everywhere_B``.

    Returns:
        (B,), differentiable once with respect to ``log_s_BC``.
    """
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
