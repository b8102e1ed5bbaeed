"""Agreement, KL divergence and common classes of two encodings of the same rows.

For people, beside a verdict: how far stored rows are from rows that were encoded now.
Shapes: N rows, C classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from logitcache.encoding.fidelity import row_losses
from logitcache.encoding.sparse import DecodedSparse, SparseEncoding
from logitcache.encoding.topk import top_k_mask

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from logitcache.encoding.arrays import Encoded
    from logitcache.encoding.kinds import Encoding

__all__ = ["encoding_losses", "row_closeness"]

_DENSE_IDS = 5  # classes that are compared where all are stored
_LEAST = -1e4  # log-probability that stands for none at all, and for what is no number


def row_closeness(
    encoding: Encoding, now: Encoded, stored: Encoded
) -> dict[str, NDArray[np.float64]]:
    """Compare rows with what is stored of them.

    Args:
        encoding: How both are encoded.
        now: The rows as they are encoded now.
        stored: The rows as they are stored, whatever they hold.

    Returns:
        (N,) by name: ``agreement`` (1 where the likeliest class is the same), ``kl`` (of now from
        stored, in nats) and ``overlap`` (share of the likeliest classes that both have).
    """
    p_NC, q_NC = _log_probs(encoding, now), _log_probs(encoding, stored)
    weight_NC = np.exp(p_NC)
    k = encoding.top_k if isinstance(encoding, SparseEncoding) else _DENSE_IDS
    k = min(k, encoding.num_classes - 1)
    common_N = (top_k_mask(p_NC, k) & top_k_mask(q_NC, k)).sum(axis=1)
    return {
        "agreement": (p_NC.argmax(axis=1) == q_NC.argmax(axis=1)).astype(np.float64),
        "kl": np.where(weight_NC > 0, weight_NC * (p_NC - q_NC), 0.0).sum(axis=1),
        "overlap": common_N / k,
    }


def encoding_losses(
    encoding: Encoding, log_probs_NC: NDArray[np.float64], encoded: Encoded
) -> dict[str, NDArray[np.float64]]:
    """Return what encoding costs each row by design, in nats: ``truncation`` and ``coding``."""
    losses = row_losses(encoding, log_probs_NC, encoded, (1.0,))
    truncation_N = losses["kl_truncated@1"]
    return {"truncation": truncation_N, "coding": losses["kl_stored@1"] - truncation_N}


def _log_probs(encoding: Encoding, arrays: Encoded) -> NDArray[np.float64]:
    """Return rows as log-probabilities (N, C), the tail spread evenly over absent classes."""
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        decoded = encoding.decode(arrays)
        if not isinstance(decoded, DecodedSparse):
            return _numbers(decoded.log_probs)
        present = np.isfinite(decoded.log_probs)
        absent_N = np.maximum(1, encoding.num_classes - present.sum(axis=1))
        base_N = decoded.tail[:, 0].astype(np.float64) - np.log(absent_N)
    out_NC = np.repeat(base_N[:, None], encoding.num_classes, axis=1)
    row, entry = np.nonzero(present)
    ids = np.minimum(decoded.class_ids[row, entry], encoding.num_classes - 1)
    out_NC[row, ids] = decoded.log_probs[row, entry]
    return _numbers(out_NC)


def _numbers(log_probs_NC: NDArray[np.floating]) -> NDArray[np.float64]:
    return np.nan_to_num(
        np.maximum(log_probs_NC.astype(np.float64), _LEAST), nan=_LEAST, posinf=0.0
    )
