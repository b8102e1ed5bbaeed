"""Confidence intervals of accuracies: over seeds, and over the images of one evaluation."""

from __future__ import annotations

import math
from statistics import mean, stdev
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["interval_of_mean", "interval_of_share"]

_NORMAL = 1.959963984540054
# 97.5 % quantiles of Student's t distribution with 1, 2, ... degrees of freedom
_STUDENT = (
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281),
    *(2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860),
)


def interval_of_mean(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % confidence interval of a mean of at least two values.

    It is that of Student's t distribution; with more than 21 values, the normal distribution.
    """
    center, count = mean(values), len(values)
    quantile = _STUDENT[count - 2] if count - 2 < len(_STUDENT) else _NORMAL
    half = quantile * stdev(values) / math.sqrt(count)
    return center - half, center + half


def interval_of_share(share: float, count: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of a share of images, by Wilson's formula.

    Args:
        share: Observed share.
        count: Number of images, at least one.
    """
    z2 = _NORMAL**2
    center = (share + z2 / (2 * count)) / (1 + z2 / count)
    spread = math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    half = _NORMAL * spread / (1 + z2 / count)
    return center - half, center + half
