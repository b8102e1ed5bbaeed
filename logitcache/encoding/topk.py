"""The K most probable classes of each row, ids ascending, ties to the lowest id.

Ids are stored as differences: those of ascending ids are small, and compress best.
Shapes: N rows, C classes, K stored classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["delta_decode", "delta_encode", "enough_mask", "top_k_mask"]


def top_k_mask(scores_NC: NDArray[np.floating], k: int) -> NDArray[np.bool_]:
    """Return a mask of the k largest values of each row: exactly k per row.

    Among classes equal to the k-th largest value the lowest ids win: bfloat16 logits tie there in
    a third of the rows, and the choice must not depend on a sorting routine.
    """
    threshold_N1 = np.partition(scores_NC, -k, axis=1)[:, -k, None]
    above: NDArray[np.bool_] = scores_NC > threshold_N1
    at: NDArray[np.bool_] = scores_NC == threshold_N1
    wanted_N1 = k - above.sum(axis=1, keepdims=True)
    surplus = at.sum(axis=1) > wanted_N1[:, 0]
    if surplus.any():
        at[surplus] &= np.cumsum(at[surplus], axis=1) <= wanted_N1[surplus]
    above |= at
    return above


def enough_mask(
    log_probs_NC: NDArray[np.float64], present_NC: NDArray[np.bool_], mass: float
) -> NDArray[np.bool_]:
    """Return which of the present classes are needed to reach a mass, the most probable first.

    A class is needed if the more probable ones have less than the mass; of equal ones the lower id
    counts as the more probable. At least one class of every row is needed.
    """
    order_NC = np.argsort(np.where(present_NC, -log_probs_NC, np.inf), axis=1, kind="stable")
    ranked_NC = np.take_along_axis(np.exp(log_probs_NC), order_NC, axis=1)
    before_NC = np.cumsum(ranked_NC, axis=1) - ranked_NC
    needed: NDArray[np.bool_] = np.empty_like(present_NC)
    np.put_along_axis(needed, order_NC, before_NC < mass, axis=1)
    return needed & present_NC


def delta_encode(ids_NK: NDArray[np.integer], dtype: str) -> NDArray[np.generic]:
    """Return the first id and then the differences, modulo the range of the dtype."""
    ids = ids_NK.astype(dtype)
    deltas = ids.copy()
    deltas[:, 1:] -= ids[:, :-1]  # unsigned: a negative difference wraps, and its sum wraps back
    return deltas


def delta_decode(deltas_NK: NDArray[np.generic]) -> NDArray[np.int64]:
    """Return class ids from stored differences: a running sum modulo the range of the dtype."""
    ids = np.cumsum(deltas_NK, axis=1, dtype=deltas_NK.dtype)
    return ids.astype(np.int64)
