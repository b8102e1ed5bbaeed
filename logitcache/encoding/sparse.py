"""The sparse encoding: the K likeliest classes and two numbers for all the others.

Shapes: N rows, C classes, K stored classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from logitcache.encoding.arrays import ArraySpec, Encoded
from logitcache.encoding.codes import code_log_probs, codes_of
from logitcache.encoding.tail import tail_of
from logitcache.encoding.topk import delta_decode, delta_encode, top_k_mask

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

__all__ = ["DecodedSparse", "SparseEncoding"]

_MAX_UINT16_CLASSES = 65536


@dataclass(frozen=True)
class DecodedSparse:
    """Sparse targets as log-probabilities at T = 1.

    Attributes:
        class_ids: Present classes ascending, int64 (N, K); absent entries trail.
        log_probs: Of those classes, float32 (N, K), -inf in absent entries; with the tail's mass
            they sum to one.
        tail: log M(1) and log M(1/4) of the absent classes, float32 (N, 2).
    """

    class_ids: NDArray[np.int64]
    log_probs: NDArray[np.float32]
    tail: NDArray[np.float32]


@dataclass(frozen=True)
class SparseEncoding:
    """How the top K of C classes become arrays.

    Attributes:
        num_classes: C.
        top_k: K, 1 <= K < C.
        values: ``codes`` (one byte, p^(1/8)) or ``float16`` (log-probabilities).
        bits: Bits of a code, 4 to 8: 2^bits - 1 levels in a byte that compresses accordingly.
    """

    num_classes: int
    top_k: int
    values: Literal["codes", "float16"] = "codes"
    bits: int = 8

    @property
    def levels(self) -> int:
        """The largest code."""
        return (1 << self.bits) - 1

    def specs(self) -> dict[str, ArraySpec]:
        """Return the arrays of a group by name."""
        narrow = self.num_classes <= _MAX_UINT16_CLASSES
        id_spec = ArraySpec((self.top_k,), "uint16" if narrow else "uint32", 0)
        tail = ArraySpec((2,), "float16", np.nan)
        if self.values == "codes":
            codes = ArraySpec((self.top_k,), "uint8", 0)
            return {"class_ids": id_spec, "codes": codes, "tail": tail}
        logp_k = ArraySpec((self.top_k,), "float16", np.nan)
        return {"class_ids": id_spec, "logp_k": logp_k, "tail": tail}

    def encode(self, log_probs_NC: NDArray[np.float64]) -> Encoded:
        """Encode log-probabilities; every row keeps exactly K classes."""
        present = top_k_mask(log_probs_NC, self.top_k)
        ids = np.nonzero(present)[1].reshape(-1, self.top_k)
        kept = np.take_along_axis(log_probs_NC, ids, axis=1)
        arrays: Encoded = {
            "class_ids": delta_encode(ids, self.specs()["class_ids"].dtype),
            "tail": tail_of(log_probs_NC, present),
        }
        if self.values == "codes":
            arrays["codes"] = codes_of(kept, self.levels)
        else:
            arrays["logp_k"] = np.clip(kept, -65504.0, 0.0).astype(np.float16)
        return arrays

    def decode(self, arrays: Mapping[str, NDArray[Any]]) -> DecodedSparse:
        """Read rows back; the present classes are scaled to what the tail leaves of one."""
        tail = arrays["tail"].astype(np.float32)
        log_probs = self._unscaled(arrays)
        present_mass = np.exp(log_probs).sum(axis=1, keepdims=True)
        tail_mass = np.exp(tail[:, :1].astype(np.float64))
        with np.errstate(divide="ignore", invalid="ignore"):
            log_scale = np.log1p(-tail_mass) - np.log(present_mass)
        return DecodedSparse(
            class_ids=delta_decode(arrays["class_ids"]),
            log_probs=(log_probs + log_scale).astype(np.float32),
            tail=tail,
        )

    def _unscaled(self, arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
        if self.values == "codes":
            out: NDArray[np.float64] = self._log_prob_table[arrays["codes"]]
            return out
        stored = arrays["logp_k"].astype(np.float64)
        return np.where(np.isnan(stored), -np.inf, stored)

    @cached_property
    def _log_prob_table(self) -> NDArray[np.float64]:
        return code_log_probs(self.levels)

    def to_json(self) -> dict[str, Any]:
        """Return the parameters as JSON values."""
        parameters = {"kind": "sparse", "top_k": self.top_k, "values": self.values}
        return {**parameters, "bits": self.bits} if self.values == "codes" else parameters
