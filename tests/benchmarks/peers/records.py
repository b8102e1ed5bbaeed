"""TinyViT's fixed-size record: a seed, K class ids, K probabilities; 4 K + 4 bytes.

Source: microsoft/Cream, TinyViT (Wu et al., ECCV 2022): int32 seed of the augmentation, int16 class
ids, float16 probabilities at T = 1; no header, no checksum, no tail.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from logitcache.encoding.sparse import DecodedSparse

__all__ = ["record_dtype", "records_of"]


def record_dtype(top_k: int) -> np.dtype[Any]:
    """Return the record of K classes."""
    return np.dtype([("seed", "<i4"), ("ids", "<i2", (top_k,)), ("probs", "<f2", (top_k,))])


def records_of(decoded: DecodedSparse) -> NDArray[Any]:
    """Return the records of some rows."""
    rows, top_k = decoded.class_ids.shape
    records = np.zeros(rows, record_dtype(top_k))
    records["seed"] = np.arange(rows)
    records["ids"] = decoded.class_ids
    records["probs"] = np.exp(decoded.log_probs)
    return records
