"""Log-probabilities of raw logits, in float64.

Shapes: N rows, C classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["label_log_probs", "log_softmax", "non_finite_rows"]


def log_softmax(
    logits_NC: NDArray[np.float32],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return log-probabilities (N, C) and the logsumexp of the logits (N,), both float64."""
    z = logits_NC.astype(np.float64)
    peak_N1 = z.max(axis=1, keepdims=True)
    relative = z - peak_N1
    lse_N1 = np.log(np.exp(relative, out=relative).sum(axis=1, keepdims=True)) + peak_N1
    z -= lse_N1
    return z, lse_N1[:, 0]


def non_finite_rows(rows_N: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return which rows (N, ...) contain NaN or infinity."""
    return np.flatnonzero(~np.isfinite(rows_N).all(axis=tuple(range(1, rows_N.ndim))))


def label_log_probs(
    log_probs_NC: NDArray[np.float64], labels_N: NDArray[np.int32]
) -> NDArray[np.float16]:
    """Return log p of each row's own label as float16, NaN for label -1."""
    known = labels_N >= 0  # -1 would select the last class
    chosen = log_probs_NC[np.arange(len(labels_N)), np.where(known, labels_N, 0)]
    clipped = np.clip(chosen, -65504.0, 0.0)
    return np.where(known, clipped, np.nan).astype(np.float16)
