"""Probability of teachers for classes outside of a class map, as a part of the loss.

A student has no class for it. With m the teacher's mass outside and p its distribution over the
classes of the student, which sums to 1 - m::

    auto      renorm for images that are known to show one of the classes, weight for all others
    weight    (1 - m) KL(p / (1 - m) || s)     a row counts as much as the teacher sees of it
    uniform   KL(p + m / C || s)               the mass is spread evenly over the classes
    renorm    KL(p / (1 - m) || s)             the mass is left out

By the chain rule, ``weight`` is the divergence over the classes and one more for everything else,
without the part that no student can change: how often there is something else.

Shapes: B batch, C classes of the student; b = 1 / T.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from logitcache.batch import DenseLogits, EncodedLogits, TargetBatch

__all__ = ["Outside", "show_a_class", "within_classes"]

Outside = Literal["auto", "weight", "uniform", "renorm"]

_LOG_ZERO = -(2.0**100)  # unlike -inf, its product with 0 is 0 and not NaN


def within_classes(
    teacher: DenseLogits | EncodedLogits,
    b: float,
    outside: Outside,
    dtype: torch.dtype,
    known_B: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return a teacher's distribution over the classes of the student, and the weight of each row.

    At temperature T the mass outside counts as one class.

    Args:
        teacher: Outputs at T = 1.
        b: 1 / T.
        outside: What is done with the mass outside.
        dtype: Data type of the results.
        known_B: Which images are known to show a class of the student, bool (B,); None for none.

    Returns:
        Finite log-probabilities (B, C) that sum to one at T = 1 / b, and weights (B,) or None for
        equal ones. A row whose mass is all outside has equal probabilities.
    """
    scaled_BC = b * teacher.log_probs.to(dtype).clamp(min=_LOG_ZERO)
    if teacher.outside is None or outside == "renorm":
        return scaled_BC.log_softmax(1), None
    log_inside_B1 = scaled_BC.logsumexp(1, keepdim=True)
    scaled_outside_B1 = b * teacher.outside.to(dtype)[:, None]
    log_all_B1 = torch.logaddexp(log_inside_B1, scaled_outside_B1)
    if outside in ("auto", "weight"):
        weight_B = (log_inside_B1 - log_all_B1).exp()[:, 0]
        if outside == "auto" and known_B is not None:
            weight_B = weight_B.masked_fill(known_B, 1.0)
        return scaled_BC.log_softmax(1), weight_B
    log_each_B1 = scaled_outside_B1 - log_all_B1 - math.log(scaled_BC.shape[1])
    return torch.logaddexp(scaled_BC - log_all_B1, log_each_B1), None


def show_a_class(targets: TargetBatch) -> Tensor:
    """Return which images show a class of the student by their labels, bool (B,).

    Of mixed images, both have to. With a class map, labels of other classes count as none.
    """
    if targets.label_sets is not None:
        return (targets.label_sets > 0).any(1)  # NaN, where labels are unknown, is not
    known_B = targets.labels >= 0
    if targets.partner_labels is None or targets.lam is None:
        return known_B
    return known_B & ((targets.partner_labels >= 0) | (targets.lam == 1))
