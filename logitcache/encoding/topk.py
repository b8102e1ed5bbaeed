"""The K most probable classes of each row, ids ascending, ties to the lowest id.

Ids are stored as differences: those of ascending ids are small, and compress best.
Shapes: N rows, C classes, K stored classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["delta_decode", "delta_encode", "enough_mask", "mask_of", "top_k_ids", "top_k_mask"]

_MANY_CLASSES = 4096  # from here on a row takes longer to partition than to search by groups
_GROUP = 16


def top_k_ids(scores_NC: NDArray[np.floating], k: int) -> NDArray[np.int64]:
    """Return the ids of the k largest values of each row, ascending: int64 (N, k).

    Among classes equal to the k-th largest value the lowest ids win: bfloat16 logits tie there in
    a third of the rows, and the choice must not depend on a sorting routine.
    """
    if scores_NC.shape[1] >= _MANY_CLASSES and k <= scores_NC.shape[1] // (2 * _GROUP):
        return _ids_by_groups(scores_NC, k)
    threshold_N1 = np.partition(scores_NC, -k, axis=1)[:, -k, None]
    above: NDArray[np.bool_] = scores_NC > threshold_N1
    at: NDArray[np.bool_] = scores_NC == threshold_N1
    wanted_N1 = k - above.sum(axis=1, keepdims=True)
    surplus = at.sum(axis=1) > wanted_N1[:, 0]
    if surplus.any():
        at[surplus] &= np.cumsum(at[surplus], axis=1) <= wanted_N1[surplus]
    return np.nonzero(above | at)[1].reshape(-1, k)


def _ids_by_groups(scores_NC: NDArray[np.floating], k: int) -> NDArray[np.int64]:
    """Return what :func:`top_k_ids` returns, without partitioning all classes.

    The k-th largest of the maxima of disjoint groups is a lower bound of the k-th largest value,
    since k values reach it; hardly more than k classes do.
    """
    rows, classes = scores_NC.shape
    whole = classes // _GROUP * _GROUP
    maxima = scores_NC[:, :whole].reshape(rows, _GROUP, -1).max(axis=1)
    maxima = np.concatenate([maxima, scores_NC[:, whole:]], axis=1)
    bound_N = np.partition(maxima, -k, axis=1)[:, -k]
    ids = np.empty((rows, k), dtype=np.int64)
    for row_C, bound, ids_k in zip(scores_NC, bound_N, ids, strict=True):
        candidates = np.flatnonzero(row_C >= bound)
        # candidates ascend, so a stable order has the lowest ids of equal values first
        order = np.argsort(-row_C[candidates], kind="stable")[:k]
        ids_k[:] = np.sort(candidates[order])
    return ids


def top_k_mask(scores_NC: NDArray[np.floating], k: int) -> NDArray[np.bool_]:
    """Return a mask of the classes of :func:`top_k_ids`: exactly k per row."""
    return mask_of(top_k_ids(scores_NC, k), scores_NC.shape[1])


def mask_of(ids_NK: NDArray[np.int64], num_classes: int) -> NDArray[np.bool_]:
    """Return a mask (N, C) of the classes with some ids."""
    mask = np.zeros((len(ids_NK), num_classes), dtype=np.bool_)
    np.put_along_axis(mask, ids_NK, True, axis=1)
    return mask


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
