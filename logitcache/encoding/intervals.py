"""Interval checks: whether a stored number can be the rounding of one within eps of another.

Every code of a cache is a monotone function of the number it stands for. So the numbers within eps
of a recomputed one have the codes between those of its lower and upper bound, and a stored code
outside of them is that of another number. Each encoding checks its own arrays in this way.

Shapes: N rows, C classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from logitcache.encoding.logits import label_log_probs

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "ROUNDING",
    "between",
    "float16_above",
    "float16_within",
    "label_consistent",
    "lse_consistent",
    "whole_rows",
]

ROUNDING = 1e-9
"""Added to every eps, in nats: rounding error of float64 sums in another order."""

_LOWEST, _HIGHEST = -65504.0, 65504.0


def between(low: NDArray[Any], stored: NDArray[Any], high: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which numbers are in a closed interval; NaN is in none."""
    found: NDArray[np.bool_] = (low <= stored) & (stored <= high)
    return found


def float16_within(
    stored: NDArray[Any],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    *,
    most: float = _HIGHEST,
) -> NDArray[np.bool_]:
    """Return which float16 numbers are roundings of a number in an interval; NaN never is.

    Args:
        stored: Stored numbers, which were clipped to the finite range before they were rounded.
        low: Lower bounds, of the same shape.
        high: Upper bounds, of the same shape.
        most: Largest number before rounding.
    """
    least = np.clip(low, _LOWEST, most).astype(np.float16)
    largest = np.clip(high, _LOWEST, most).astype(np.float16)
    return between(least, stored, largest)


def float16_above(values: NDArray[np.floating]) -> NDArray[np.float16]:
    """Return the smallest float16 that is not below each value, infinity above 65504."""
    with np.errstate(over="ignore"):
        near = values.astype(np.float16)
        above: NDArray[np.float16] = np.nextafter(near, np.float16(np.inf))
    # compared in the type of the values, in which every float16 is exact
    return np.where(near.astype(values.dtype) < values, above, near)


def lse_consistent(
    stored_N: NDArray[Any], lse_N: NDArray[np.float64], eps_N: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Return which stored logsumexps are within eps of recomputed ones, rounded to float32."""
    low_N = (lse_N - eps_N - ROUNDING).astype(np.float32)
    high_N = (lse_N + eps_N + ROUNDING).astype(np.float32)
    return between(low_N, stored_N, high_N)


def label_consistent(
    stored_N: NDArray[Any],
    log_probs_NC: NDArray[np.float64],
    labels_N: NDArray[np.int32],
    eps_N: NDArray[np.float64],
) -> NDArray[np.bool_]:
    """Return which stored log-probabilities of the labels are within eps; NaN without a label."""
    reach_N1 = (eps_N + ROUNDING)[:, None]
    low_N = label_log_probs(log_probs_NC - reach_N1, labels_N)
    high_N = label_log_probs(log_probs_NC + reach_N1, labels_N)
    return np.where(labels_N >= 0, between(low_N, stored_N, high_N), np.isnan(stored_N))


def whole_rows(within_N: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which rows (N, ...) are True everywhere, bool (N,)."""
    whole_N: NDArray[np.bool_] = np.all(within_N.reshape(len(within_N), -1), axis=1)
    return whole_N
