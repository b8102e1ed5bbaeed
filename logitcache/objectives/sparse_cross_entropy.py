"""Divergence from sparse targets, and the mass of absent classes, with explicit gradients.

Autograd would run about twenty more kernels for the same sums, and at a thousand classes launching
each takes longer than running it. Here the student's softmax is computed once, and the gradient,
the softmax minus the target, is written over it. Targets sum to one, so the softmax has no weight.

Shapes: B batch, C classes, K stored classes; b = 1 / T; s = softmax(b logits).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from logitcache.errors import UsageError

__all__ = ["divergence_from_bucket", "divergence_from_spread", "log_absent_mass", "may_read"]

_ROWS_AT_ONCE = 32
_LOG_ZERO = -1e30  # log of zero; unlike -inf, its product with 0 is 0 and not NaN
_SAFE = 1e-25  # probabilities above it have all digits, in the softmax and in its sums


def divergence_from_spread(
    logits_BC: Tensor,
    b: float,
    ids_BK: Tensor,
    weights_BK: Tensor,
    own_BK: Tensor,
    spread_B: Tensor | None = None,
    own_spread_B: Tensor | None = None,
) -> Tensor:
    """Return sum_k (h_k - w_k log s[id_k]) + e (l - sum_c log s[c]) of every row.

    Args:
        logits_BC: Logits of the student, float32 or wider.
        b: Factor of the logits, 1 / T.
        ids_BK: Indices of the classes with individual weights.
        weights_BK: Individual weights w, without gradient; zero for unused entries.
        own_BK: Constants h, without gradient.
        spread_B: Weight e of every class, without gradient; None for zero. The weights of a row
            sum to one: sum_k w_k + C e = 1.
        own_spread_B: Constant l, without gradient.

    Returns:
        (B,), differentiable once with respect to ``logits_BC``.
    """
    divergence_B: Tensor = _Spread.apply(
        logits_BC, b, ids_BK, weights_BK, own_BK, spread_B, own_spread_B
    )
    return divergence_B


def divergence_from_bucket(
    logits_BC: Tensor,
    b: float,
    ids_BK: Tensor,
    used_BK: Tensor | None,
    q_BK: Tensor,
    own_BK: Tensor,
    log_mass_B: Tensor,
) -> Tensor:
    """Return sum_k (h_k - q_k log s[id_k]) + m (log m - log sum_absent s[c]) of every row.

    Args:
        logits_BC: Logits of the student, float32 or wider.
        b: Factor of the logits, 1 / T.
        ids_BK: Indices of the present classes; all others are absent.
        used_BK: 1 for entries with a present class, 0 for unused entries, which repeat a class;
            None if all entries are used and classes are absent.
        q_BK: Probabilities q of the present classes, without gradient; zero for unused entries.
        own_BK: Constants h, without gradient.
        log_mass_B: Logarithm of the probability m of all absent classes, without gradient. The
            probabilities of a row sum to one: sum_k q_k + m = 1.

    Returns:
        (B,), differentiable once with respect to ``logits_BC``.
    """
    divergence_B: Tensor = _Bucket.apply(logits_BC, b, ids_BK, used_BK, q_BK, own_BK, log_mass_B)
    return divergence_B


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
    """Gradient: b times s minus e everywhere, minus w_k at its class."""

    @staticmethod
    def forward(
        ctx: Any,
        logits_BC: Tensor,
        b: float,
        ids_BK: Tensor,
        weights_BK: Tensor,
        own_BK: Tensor,
        spread_B: Tensor | None,
        own_spread_B: Tensor | None,
    ) -> Tensor:
        scaled_BC = _scaled(logits_BC, b)
        s_BC = scaled_BC.softmax(1)
        logits_BK = scaled_BC.gather(1, ids_BK)
        one_B1, log_s_one_B1 = _one_class(scaled_BC, s_BC, logits_BK, ids_BK)
        # log s = (logit - logit of one class) + log s of that class: differences of logits are
        # exact where a logarithm of a small probability would be -inf
        divergence_B = torch.addcmul(own_BK, weights_BK, logits_BK - one_B1, value=-1.0).sum(1)
        if spread_B is not None and own_spread_B is not None:
            above_B = scaled_BC.sum(1).sub_(one_B1[:, 0], alpha=logits_BC.shape[1])
            divergence_B.addcmul_(spread_B, own_spread_B - above_B)
        ctx.save_for_backward(logits_BC, ids_BK, weights_BK, spread_B)
        ctx.b = b
        ctx.s_BC = s_BC  # not saved_tensors: backward writes its result into this buffer
        return divergence_B.sub_(log_s_one_B1[:, 0])

    @staticmethod
    def backward(ctx: Any, grad_B: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_second_derivative()
        logits_BC, ids_BK, weights_BK, spread_B = ctx.saved_tensors
        s_BC, ctx.s_BC = ctx.s_BC, None
        if s_BC is None:  # a second backward pass over the same graph
            s_BC = _scaled(logits_BC, ctx.b).softmax(1)
        grad_B1 = _scaled(grad_B, ctx.b)[:, None]
        common = None if spread_B is None else _common(grad_B1)
        if spread_B is None:
            s_BC.mul_(grad_B1)
        elif common is None:
            s_BC.mul_(grad_B1).sub_(spread_B[:, None] * grad_B1)
        else:  # one pass instead of two
            torch.add(spread_B[:, None] * -common, s_BC, alpha=common, out=s_BC)
        s_BC.scatter_add_(1, ids_BK, weights_BK * -grad_B1)
        return s_BC, None, None, None, None, None, None


class _Bucket(torch.autograd.Function):
    """Gradient: b times s - q_k at present classes; absent ones divide the remainder.

    They divide it by their own softmax: the mass of the absent classes may be too small to be
    computed as one minus that of the present classes.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits_BC: Tensor,
        b: float,
        ids_BK: Tensor,
        used_BK: Tensor | None,
        q_BK: Tensor,
        own_BK: Tensor,
        log_mass_B: Tensor,
    ) -> Tensor:
        parts = _separated(_scaled(logits_BC, b), ids_BK, used_BK)
        mass_B = log_mass_B.exp()
        divergence_B = torch.addcmul(own_BK, q_BK, parts.log_present, value=-1.0).sum(1)
        divergence_B.addcmul_(mass_B, log_mass_B - parts.log_absent)
        present_BK = parts.present if used_BK is None else parts.present.mul_(used_BK)
        at_present_BK = present_BK.sub_(q_BK)
        to_absent_B = parts.log_absent.exp_().sub_(mass_B).div_(parts.absent_sum)
        ctx.save_for_backward(logits_BC, ids_BK, used_BK, at_present_BK, to_absent_B)
        ctx.b = b
        ctx.absent_BC = parts.absent  # as s_BC above
        return divergence_B

    @staticmethod
    def backward(ctx: Any, grad_B: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_second_derivative()
        logits_BC, ids_BK, used_BK, at_present_BK, to_absent_B = ctx.saved_tensors
        absent_BC, ctx.absent_BC = ctx.absent_BC, None
        if absent_BC is None:  # a second backward pass over the same graph
            absent_BC = _separated(_scaled(logits_BC, ctx.b), ids_BK, used_BK).absent
        grad_B = _scaled(grad_B, ctx.b)
        absent_BC.mul_((grad_B * to_absent_B)[:, None])
        # added, not set: unused entries repeat a present class, with a gradient of zero
        absent_BC.scatter_add_(1, ids_BK, at_present_BK * grad_B[:, None])
        return absent_BC, None, None, None, None, None, None


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
    def backward(ctx: Any, grad_B: Tensor) -> tuple[Tensor, None]:
        _refuse_second_derivative()
        log_s_BC, ids_BK, log_mass_B = ctx.saved_tensors
        grad_BC = (log_s_BC - log_mass_B[:, None]).exp_().mul_(grad_B[:, None])
        return grad_BC.scatter_(1, ids_BK, 0.0), None


class _Separated(NamedTuple):
    """Student probabilities of present classes, and of all absent ones together.

    Attributes:
        present: Probabilities of present classes (B, K); any number from 0 to 1 in unused entries.
        log_present: Their logarithms (B, K), finite.
        log_absent: Log-probability of all absent classes together (B,).
        absent: Probabilities of the absent classes up to a factor (B, C); zero at present classes.
        absent_sum: Sum of ``absent`` over the classes (B,).
    """

    present: Tensor
    log_present: Tensor
    log_absent: Tensor
    absent: Tensor
    absent_sum: Tensor


def _separated(scaled_BC: Tensor, ids_BK: Tensor, used_BK: Tensor | None) -> _Separated:
    """Separate present and absent classes: by one softmax if it has all digits, else by two."""
    if may_read(scaled_BC):
        separated = _separated_by_one(scaled_BC, ids_BK)
        if float(separated.present.min()) > _SAFE and float(separated.absent_sum.min()) > _SAFE:
            return separated
    return _separated_by_two(scaled_BC, ids_BK, used_BK)


def _separated_by_one(scaled_BC: Tensor, ids_BK: Tensor) -> _Separated:
    """Take all probabilities from the softmax over all classes."""
    s_BC = scaled_BC.softmax(1)
    s_BK = s_BC.gather(1, ids_BK)
    absent_BC = s_BC.scatter_(1, ids_BK, torch.zeros_like(s_BK))
    sum_B = absent_BC.sum(1)
    return _Separated(s_BK, s_BK.log(), sum_B.log(), absent_BC, sum_B)


def _separated_by_two(scaled_BC: Tensor, ids_BK: Tensor, used_BK: Tensor | None) -> _Separated:
    """Take a softmax over the absent classes, and one over the present ones and all absent ones."""
    present_BK = scaled_BC.gather(1, ids_BK)
    absent_BC = scaled_BC.scatter(1, ids_BK, torch.full_like(present_BK, -torch.inf))
    full_B = None
    if used_BK is not None and used_BK.shape[1] >= scaled_BC.shape[1]:
        full_B = used_BK.sum(1) == scaled_BC.shape[1]  # rows without absent classes
        absent_BC.masked_fill_(full_B[:, None], 0.0)  # for a finite softmax, which is not used
    softmax_BC = absent_BC.softmax(1)
    top_B1, log_s_top_B1 = _top_class(absent_BC, softmax_BC)
    log_absent_B1 = top_B1.sub_(log_s_top_B1)
    if full_B is not None:
        log_absent_B1.masked_fill_(full_B[:, None], _LOG_ZERO)
    if used_BK is not None:
        present_BK.add_(used_BK - 1.0, alpha=-_LOG_ZERO)
    log_s_BK1 = torch.cat([present_BK, log_absent_B1], 1).log_softmax(1)
    log_s_BK, log_s_absent_B = log_s_BK1[:, :-1], log_s_BK1[:, -1]
    ones_B = torch.ones_like(log_s_absent_B)
    return _Separated(log_s_BK.exp(), log_s_BK, log_s_absent_B, softmax_BC, ones_B)


def _one_class(
    scaled_BC: Tensor, s_BC: Tensor, logits_BK: Tensor, ids_BK: Tensor
) -> tuple[Tensor, Tensor]:
    """Return logit and log-probability of one class of every row, both (B, 1).

    It is the first stored class where the student gives it a probability with all digits, else the
    most probable class, which takes two passes over all classes.
    """
    if may_read(scaled_BC):
        s_B1 = s_BC.gather(1, ids_BK[:, :1])
        if float(s_B1.min()) > _SAFE:
            return logits_BK[:, :1], s_B1.log_()
    return _top_class(scaled_BC, s_BC)


def _top_class(scaled_BC: Tensor, s_BC: Tensor) -> tuple[Tensor, Tensor]:
    """Return logit and log-probability of the most probable class of every row, both (B, 1).

    The probability is at least 1 / C, so its logarithm is finite.
    """
    return scaled_BC.amax(1, keepdim=True), s_BC.amax(1, keepdim=True).log_()


def may_read(values: Tensor) -> bool:
    """Return whether Python may read values of a tensor to choose between two computations.

    It would wait for an accelerator, and end the graph of ``torch.compile``.
    """
    return values.device.type == "cpu" and not torch.compiler.is_compiling()


def _refuse_second_derivative() -> None:
    """Raise an error in a backward pass that is itself recorded.

    Its result would be a constant to autograd, and the second derivative silently zero.
    """
    if torch.is_grad_enabled():
        raise UsageError(
            "this loss on sparse targets cannot be differentiated twice",
            expected="backward() and torch.autograd.grad() without create_graph=True",
            hint="use dense targets (encoding: {kind: dense}) for second derivatives",
        )


def _common(grad_B1: Tensor) -> float | None:
    """Return the gradient of all rows if it is the same, as that of a mean, and may be read."""
    if not may_read(grad_B1):
        return None
    smallest, largest = grad_B1.aminmax()
    return float(largest) if smallest == largest else None


def _scaled(values: Tensor, b: float) -> Tensor:
    """Return b times the values, and the values themselves for b = 1."""
    return values if b == 1.0 else values * b
