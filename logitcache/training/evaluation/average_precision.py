"""Average precision of scores of images for classes, as scikit-learn defines it.

Shapes: N images, C classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["average_precisions", "mean_average_precision"]


def average_precisions(
    scores_NC: NDArray[np.floating[Any]], present_NC: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return the average precision of every class, float64 (C,).

    ::

        AP = sum_k (R_k - R_{k-1}) P_k

    over the thresholds k from the highest score on, with precision P and recall R; images of equal
    scores have one threshold. NaN for classes without an image.

    Args:
        scores_NC: Score of each image for each class, for example its logits.
        present_NC: Whether the image has the class.
    """
    columns = zip(scores_NC.T, present_NC.T, strict=True)
    return np.array([_average_precision(*column) for column in columns], dtype=np.float64)


def mean_average_precision(
    scores_NC: NDArray[np.floating[Any]], present_NC: NDArray[np.bool_]
) -> float:
    """Return the mean of :func:`average_precisions` over the classes that have images.

    NaN if there are none.
    """
    found = average_precisions(scores_NC, present_NC)
    found = found[~np.isnan(found)]
    return float(found.mean()) if len(found) else float("nan")


def _average_precision(scores_N: NDArray[Any], present_N: NDArray[np.bool_]) -> float:
    order = np.argsort(-scores_N, kind="stable")
    hits_N = present_N[order].cumsum()
    if not len(hits_N) or not hits_N[-1]:
        return float("nan")
    # the last image of each group of equal scores
    ends = np.append(np.flatnonzero(np.diff(scores_N[order])), len(order) - 1)
    hits = hits_N[ends]
    return float((np.diff(hits, prepend=0) * hits / (ends + 1)).sum() / hits_N[-1])
