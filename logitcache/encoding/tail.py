"""The tail of a sparse row: two numbers for all classes that are not stored.

log M(b) is the logsumexp of b log p over the absent classes: their mass at temperature 1/b before
normalization. It is stored at b = 1 and b = 1/4; with log M(0) = log(number of absent classes) a
quadratic interpolates all three, exact at T = 1 and T = 4 and close in between.
Shapes: N rows, C classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["NO_TAIL", "log_masses", "quadratic", "tail_of"]

NO_TAIL = -65504.0
"""The lowest finite float16: the value of both numbers where no class is absent."""

_SMALLEST_MASS = 1e-290  # far enough above the smallest float64 that no digit of a sum is lost


def tail_of(
    log_probs_NC: NDArray[np.float64], present_NC: NDArray[np.bool_]
) -> NDArray[np.float16]:
    """Return log M(1) and log M(1/4) of each row as they are stored: float16 (N, 2)."""
    # only from below: the first number is at most 0, the second one at most log(C)
    masses = np.maximum(log_masses(log_probs_NC, present_NC), NO_TAIL)
    stored: NDArray[np.float16] = masses.astype(np.float16)
    return stored


def log_masses(
    log_probs_NC: NDArray[np.float64], present_NC: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return log M(1) and log M(1/4) of each row, NO_TAIL where no class is absent: (N, 2).

    Summed over the absent classes: one minus the others would lose all digits where those are
    nearly one.
    """
    # in place from here on: (N, C) in float64 is the largest array
    quarters_NC = np.multiply(log_probs_NC, 0.25)
    np.exp(quarters_NC, out=quarters_NC)
    np.putmask(quarters_NC, present_NC, 0.0)
    quarter_N = quarters_NC.sum(axis=1)
    # two squares are correctly rounded on every processor and cost less than a second exponential
    np.square(np.square(quarters_NC, out=quarters_NC), out=quarters_NC)
    mass_N = quarters_NC.sum(axis=1)
    with np.errstate(divide="ignore"):
        masses_N2: NDArray[np.float64] = np.log(np.stack([mass_N, quarter_N], axis=1))
    tiny_N = mass_N < _SMALLEST_MASS
    if tiny_N.any():
        masses_N2[tiny_N] = _scaled_log_masses(log_probs_NC[tiny_N], present_NC[tiny_N])
    np.minimum(masses_N2[:, 0], 0.0, out=masses_N2[:, 0])
    return masses_N2


def _scaled_log_masses(
    log_probs_NC: NDArray[np.float64], present_NC: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return what :func:`log_masses` returns of masses that are too small for a float64."""
    absent_NC = np.where(present_NC, -np.inf, log_probs_NC)
    peak_N1 = absent_NC.max(axis=1, keepdims=True)
    has_tail_N1 = np.isfinite(peak_N1)
    peak_N1 = np.where(has_tail_N1, peak_N1, 0.0)
    with np.errstate(divide="ignore"):
        masses = [
            np.log(np.exp(b * (absent_NC - peak_N1)).sum(axis=1, keepdims=True)) + b * peak_N1
            for b in (1.0, 0.25)
        ]
    return np.where(has_tail_N1, np.concatenate(masses, axis=1), NO_TAIL)


def quadratic(b: float) -> tuple[float, float, float]:
    """Return the weights of log M(0), log M(1/4) and log M(1) in log M(b)."""
    return (
        4.0 * (b - 0.25) * (b - 1.0),
        -16.0 / 3.0 * b * (b - 1.0),
        4.0 / 3.0 * b * (b - 0.25),
    )
