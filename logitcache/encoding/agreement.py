"""Agreement, KL divergence and common classes of two encodings of the same rows.

They report how much stored rows differ from rows that are encoded now.
Shapes: N rows, C classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from logitcache.encoding.fidelity import row_losses
from logitcache.encoding.sparse import SparseEncoding
from logitcache.encoding.topk import top_k_mask

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from logitcache.encoding.arrays import Encoded
    from logitcache.encoding.decoded import Decoded
    from logitcache.encoding.kinds import Encoding

__all__ = ["encoding_losses", "row_closeness"]

_DENSE_IDS = 5  # classes that are compared where all are stored
_LEAST = -1e4  # lowest log-probability that is compared, also used for rows of NaN


def row_closeness(
    encoding: Encoding, now: Encoded, stored: Encoded
) -> dict[str, NDArray[np.float64]]:
    """Compare encoded rows with the stored ones.

    Args:
        encoding: Encoding of both.
        now: The rows as they are encoded now.
        stored: The rows as they are stored, perhaps damaged.

    Returns:
        (N,) by name: ``agreement`` (1 where the top class is the same), ``kl`` (KL divergence of
        now from stored, in nats) and ``overlap`` (share of the top classes that both have).
        Agreement and overlap are 0 where a row was not computed or is damaged.
    """
    own, other = _decode(encoding, now), _decode(encoding, stored)
    p_NC, q_NC = (_bounded(each.dense_log_probs()) for each in (own, other))
    p_NO, q_NO = (_bounded(each.outcome_log_probs()) for each in (own, other))
    weight_NO = np.exp(p_NO)
    both_N = own.computed & other.computed
    k = encoding.top_k if isinstance(encoding, SparseEncoding) else _DENSE_IDS
    k = min(k, encoding.num_classes - 1)
    common_N = (top_k_mask(p_NC, k) & top_k_mask(q_NC, k)).sum(axis=1)
    return {
        "agreement": (both_N & (own.top_class() == other.top_class())).astype(np.float64),
        "kl": np.where(weight_NO > 0, weight_NO * (p_NO - q_NO), 0.0).sum(axis=1),
        "overlap": np.where(both_N, common_N / k, 0.0),
    }


def encoding_losses(
    encoding: Encoding, log_probs_NC: NDArray[np.float64], encoded: Encoded
) -> dict[str, NDArray[np.float64]]:
    """Return the encoding loss of each row in nats: ``truncation`` and ``coding``."""
    losses = row_losses(encoding, log_probs_NC, encoded, (1.0,))
    truncation_N = losses["kl_truncated@1"]
    return {"truncation": truncation_N, "coding": losses["kl_stored@1"] - truncation_N}


def _decode(encoding: Encoding, arrays: Encoded) -> Decoded:
    """Decode rows, perhaps damaged ones, without warnings about their numbers."""
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        return encoding.decode(arrays)


def _bounded(log_probs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return log-probabilities that make every KL divergence finite."""
    return np.nan_to_num(np.maximum(log_probs, _LEAST), nan=_LEAST)
