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
    absent = np.where(present_NC, -np.inf, log_probs_NC)
    peak_N = absent.max(axis=1)
    has_tail = np.isfinite(peak_N)
    peak_N = np.where(has_tail, peak_N, 0.0)
    absent -= peak_N[:, None]  # in place from here on: (N, C) in float64 is the largest array
    relative = np.exp(absent, out=absent)
    with np.errstate(divide="ignore"):
        mass = np.log(relative.sum(axis=1)) + peak_N
        # two square roots are correctly rounded on every processor, a power is not
        np.sqrt(np.sqrt(relative, out=relative), out=relative)
        quarter = np.log(relative.sum(axis=1)) + peak_N / 4.0
    tail = np.stack([np.minimum(mass, 0.0), quarter], axis=1)
    tail[~has_tail] = NO_TAIL
    return tail


def quadratic(b: float) -> tuple[float, float, float]:
    """Return the weights of log M(0), log M(1/4) and log M(1) in log M(b)."""
    return (
        4.0 * (b - 0.25) * (b - 1.0),
        -16.0 / 3.0 * b * (b - 1.0),
        4.0 / 3.0 * b * (b - 0.25),
    )
