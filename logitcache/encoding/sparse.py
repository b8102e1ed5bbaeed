"""The sparse encoding: the K most probable classes, and two numbers for the rest.

Shapes: N rows, C classes, K stored classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np

from logitcache.encoding.arrays import ArraySpec, Encoded, encode_in_parts
from logitcache.encoding.codes import code_log_probs, codes_of
from logitcache.encoding.decoded import DecodedSparse
from logitcache.encoding.intervals import ROUNDING, between, float16_within, whole_rows
from logitcache.encoding.tail import log_masses, tail_of
from logitcache.encoding.topk import (
    delta_decode,
    delta_encode,
    enough_mask,
    mask_of,
    top_k_ids,
    top_k_mask,
)
from logitcache.errors import CacheDamaged

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

__all__ = ["SparseEncoding"]

_MAX_UINT16_CLASSES = 65536
_ABSOLUTE_BITS = 8  # of so many bits, codes of p are fine enough, and take fewer bytes


@dataclass(frozen=True)
class SparseEncoding:
    """Encoding of the K most probable of C classes.

    Attributes:
        num_classes: C.
        top_k: K, 1 <= K < C.
        values: ``codes`` (one byte, p^(1/8)) or ``float16`` (log-probabilities).
        bits: Bits of a code, 4 to 8: 2^bits - 1 levels in a byte that compresses accordingly.
        mass: Share of the probability that is sufficient: fewer than K classes are kept where they
            have it. None to keep K of every row.
        relative: Whether codes are those of p / max p of their row, which are finer where no class
            is certain. Reading does not depend on it.
    """

    num_classes: int
    top_k: int
    values: Literal["codes", "float16"] = "codes"
    bits: int = 8
    mass: float | None = None
    relative: bool = False

    head: ClassVar[str] = "softmax"
    """Head of the teachers whose outputs it stores, see :data:`.HEADS`."""
    truncates: ClassVar[bool] = True
    """Whether classes are left out."""

    compressed_share: ClassVar[float] = 0.5
    """Compressed size of a unit, roughly, as a share of its size before compression."""

    required: ClassVar[str] = ""
    """Name that the root has to require of readers; empty for encodings of logitcache 0.1."""

    @classmethod
    def new(
        cls,
        num_classes: int,
        top_k: int,
        values: Literal["codes", "float16"] = "codes",
        bits: int = 8,
        mass: float | None = None,
    ) -> Self:
        """Return the encoding for a teacher that no cache contains yet."""
        relative = values == "codes" and bits < _ABSOLUTE_BITS
        return cls(num_classes, top_k, values, bits, mass, relative)

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

    def kept(self, log_probs_NC: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return which classes of each row are kept."""
        likeliest = top_k_mask(log_probs_NC, self.top_k)
        return likeliest if self.mass is None else enough_mask(log_probs_NC, likeliest, self.mass)

    def encode(self, log_probs_NC: NDArray[np.float64]) -> Encoded:
        """Encode log-probabilities."""
        return encode_in_parts(
            lambda rows: self._encode_rows(log_probs_NC[rows]), len(log_probs_NC), self.num_classes
        )

    def _encode_rows(self, log_probs_NC: NDArray[np.float64]) -> Encoded:
        ids_NK = top_k_ids(log_probs_NC, self.top_k)
        present_NC = mask_of(ids_NK, self.num_classes)
        used_NK = np.ones_like(ids_NK, dtype=np.bool_)
        if self.mass is not None:
            present_NC = enough_mask(log_probs_NC, present_NC, self.mass)
            # ascending, with the entries that are not used last
            ids_NK = np.argsort(~present_NC, axis=1, kind="stable")[:, : self.top_k]
            used_NK = np.take_along_axis(present_NC, ids_NK, axis=1)
        kept_NK = np.take_along_axis(log_probs_NC, ids_NK, axis=1)
        deltas_NK = delta_encode(ids_NK, self.specs()["class_ids"].dtype)
        arrays: Encoded = {
            "class_ids": np.where(used_NK, deltas_NK, deltas_NK.dtype.type(0)),
            "tail": tail_of(log_probs_NC, present_NC),
        }
        if self.values == "codes":
            codes_NK = codes_of(self.coded_log_probs(kept_NK), self.levels)
            arrays["codes"] = np.where(used_NK, codes_NK, np.uint8(0))
        else:
            clipped = np.clip(kept_NK, -65504.0, 0.0).astype(np.float16)
            arrays["logp_k"] = np.where(used_NK, clipped, np.float16(np.nan))
        return arrays

    def coded_log_probs(self, kept_NK: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return log p of the stored classes as codes have it: relative to the largest, or not."""
        return kept_NK - kept_NK.max(axis=1, keepdims=True) if self.relative else kept_NK

    def decode(self, arrays: Mapping[str, NDArray[Any]]) -> DecodedSparse:
        """Decode rows; the present classes are scaled so that they sum to one with the tail.

        Raises:
            CacheDamaged: A class id or a code is out of range.
        """
        ids_NK = delta_decode(arrays["class_ids"])
        fault = self._out_of_range(ids_NK, arrays.get("codes"))
        if fault is not None:
            raise CacheDamaged("stored targets cannot be decoded", got=fault)
        tail = arrays["tail"].astype(np.float32)
        if self.values == "codes":
            # half the time of indexing with an array
            log_probs = code_log_probs(self.levels).take(arrays["codes"])
        else:
            stored = arrays["logp_k"].astype(np.float64)
            log_probs = np.where(np.isnan(stored), -np.inf, stored)
        present_mass = np.exp(log_probs).sum(axis=1, keepdims=True)
        tail_mass = np.exp(tail[:, :1].astype(np.float64))
        with np.errstate(divide="ignore", invalid="ignore"):
            log_scale = np.log1p(-tail_mass) - np.log(present_mass)
        return DecodedSparse(
            log_probs=(log_probs + log_scale).astype(np.float32),
            num_classes=self.num_classes,
            class_ids=ids_NK,
            tail=tail,
        )

    def fault_of(self, arrays: Mapping[str, NDArray[Any]]) -> str | None:
        """Return why stored rows cannot be decoded; None if they can.

        Args:
            arrays: Some of the arrays by name.
        """
        ids_NK = delta_decode(arrays["class_ids"]) if "class_ids" in arrays else None
        return self._out_of_range(ids_NK, arrays.get("codes"))

    def _out_of_range(
        self, ids_NK: NDArray[np.int64] | None, codes_NK: NDArray[Any] | None
    ) -> str | None:
        """Return which class id or code is out of range, None without one."""
        if ids_NK is not None:
            most = int(ids_NK.max(initial=0))
            if most >= self.num_classes:
                return f"class id {most} is out of range for {self.num_classes} classes"
        if codes_NK is not None:
            most = int(codes_NK.max(initial=0))
            if most > self.levels:
                return f"code {most} is out of range; the largest code is {self.levels}"
        return None

    def consistent(
        self,
        arrays: Mapping[str, NDArray[Any]],
        log_probs_NC: NDArray[np.float64],
        eps_N: NDArray[np.float64],
    ) -> NDArray[np.bool_]:
        """Return which stored rows may be the encoding of an output within eps of another one.

        Args:
            arrays: The stored rows.
            log_probs_NC: The recomputed log-probabilities.
            eps_N: Largest difference of a log-probability, in nats.
        """
        # clipped to be indices; ids out of range fail in _well_formed
        ids_NK = np.minimum(delta_decode(arrays["class_ids"]), self.num_classes - 1)
        codes = self.values == "codes"
        used_NK: NDArray[np.bool_] = arrays["codes"] > 0 if codes else ~np.isnan(arrays["logp_k"])
        present_NC = np.zeros(log_probs_NC.shape, dtype=np.bool_)
        row, entry = np.nonzero(used_NK)
        present_NC[row, ids_NK[row, entry]] = True
        kept_NK = np.take_along_axis(log_probs_NC, ids_NK, axis=1)
        reach_N = eps_N + ROUNDING
        masses_N2 = log_masses(log_probs_NC, present_NC)
        reach_N2 = reach_N[:, None] * np.array([1.0, 0.25])  # log M(b) moves by at most b eps
        high_N2 = masses_N2 + reach_N2
        high_N2[:, 0] = np.minimum(high_N2[:, 0], 0.0)
        parts = [
            self._well_formed(arrays, used_NK),
            whole_rows(self._coded(arrays, kept_NK, reach_N[:, None]) | ~used_NK),
            self._choosable(log_probs_NC, present_NC, reach_N),
            whole_rows(float16_within(arrays["tail"], masses_N2 - reach_N2, high_N2)),
        ]
        consistent_N: NDArray[np.bool_] = np.logical_and.reduce(parts)
        return consistent_N

    def _well_formed(
        self, arrays: Mapping[str, NDArray[Any]], used_NK: NDArray[np.bool_]
    ) -> NDArray[np.bool_]:
        """Return in which rows ids ascend, unused entries are last, and no class is missing."""
        ids_NK = delta_decode(arrays["class_ids"])
        ascending = (np.diff(ids_NK, axis=1) > 0) | ~used_NK[:, 1:]
        known = (ids_NK < self.num_classes) | ~used_NK
        empty = (arrays["class_ids"] == 0) | used_NK
        trailing = used_NK[:, :-1] | ~used_NK[:, 1:]
        enough = used_NK if self.mass is None else used_NK[:, :1]
        return whole_rows(np.concatenate([ascending, known, empty, trailing, enough], axis=1))

    def _coded(
        self,
        arrays: Mapping[str, NDArray[Any]],
        kept_NK: NDArray[np.float64],
        reach_N1: NDArray[np.float64],
    ) -> NDArray[np.bool_]:
        """Return which stored numbers are roundings of a number within reach."""
        if self.values == "float16":
            low_NK, high_NK = kept_NK - reach_N1, kept_NK + reach_N1
            return float16_within(arrays["logp_k"], low_NK, high_NK, most=0.0)
        coded_NK, codes_NK = self.coded_log_probs(kept_NK), arrays["codes"]
        reach_N1 = 2 * reach_N1 if self.relative else reach_N1  # the largest one moves, too
        low_NK, high_NK = coded_NK - reach_N1, coded_NK + reach_N1
        least_NK, most_NK = codes_of(low_NK, self.levels), codes_of(high_NK, self.levels)
        return between(least_NK, codes_NK, most_NK)

    def _choosable(
        self,
        log_probs_NC: NDArray[np.float64],
        present_NC: NDArray[np.bool_],
        reach_N: NDArray[np.float64],
    ) -> NDArray[np.bool_]:
        """Return in which rows the stored classes may be the most probable, and as many as needed.

        Two classes change by the reach each, so their order may change up to twice the reach.
        With ``mass``, bounds of the sums are used, so a few wrong choices may be accepted.
        """
        least_N = np.where(present_NC, log_probs_NC, np.inf).min(axis=1)
        most_absent_N = np.where(present_NC, -np.inf, log_probs_NC).max(axis=1)
        likeliest_N: NDArray[np.bool_] = most_absent_N - least_N <= 2 * reach_N
        if self.mass is None:
            return likeliest_N
        held_N = np.where(present_NC, np.exp(log_probs_NC), 0.0).sum(axis=1)
        last_N = np.exp(least_N + 2 * reach_N)  # upper bound of the least probable one of them
        needed_N = np.exp(-reach_N) * (held_N - last_N) < self.mass
        full_N = present_NC.sum(axis=1) == self.top_k
        enough_N = full_N | (np.exp(reach_N) * held_N >= self.mass)
        choosable_N: NDArray[np.bool_] = likeliest_N & needed_N & enough_N
        return choosable_N

    def settings(self) -> dict[str, Any]:
        """Return the parameters that can be configured, as JSON values: all of them."""
        return self.to_json()

    def to_json(self) -> dict[str, Any]:
        """Return the parameters as JSON values."""
        parameters = {"kind": "sparse", "top_k": self.top_k, "values": self.values}
        if self.values == "codes":
            parameters["bits"] = self.bits
        if self.relative:
            parameters["relative"] = True
        return parameters if self.mass is None else {**parameters, "mass": self.mass}
