"""The dense encoding: every class, as float16 or as one byte between the row's extremes.

Shapes: N rows, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from logitcache.encoding.arrays import ArraySpec, Encoded
from logitcache.encoding.decoded import DecodedDense
from logitcache.encoding.intervals import (
    ROUNDING,
    between,
    float16_above,
    float16_within,
    whole_rows,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

__all__ = ["DenseEncoding", "levels_of", "range_of"]


@dataclass(frozen=True)
class DenseEncoding:
    """Encoding of the log-probabilities of all C classes.

    Attributes:
        num_classes: C.
        values: ``float16``, or ``uint8`` between the row's lowest and highest log-probability.
    """

    num_classes: int
    values: Literal["float16", "uint8"] = "float16"

    head: ClassVar[str] = "softmax"
    """Head of the teachers whose outputs it stores, see :data:`.HEADS`."""
    truncates: ClassVar[bool] = False
    """Whether classes are left out."""

    compressed_share: ClassVar[float] = 0.9
    """Compressed size of a unit, roughly, as a share of its size before compression."""

    required: ClassVar[str] = ""
    """Name that the root has to require of readers; empty for encodings of logitcache 0.1."""

    def specs(self) -> dict[str, ArraySpec]:
        """Return the arrays of a group by name."""
        if self.values == "float16":
            return {"logp": ArraySpec((self.num_classes,), "float16", np.nan)}
        return {
            "logp": ArraySpec((self.num_classes,), "uint8", 0),
            "logp_range": ArraySpec((2,), "float16", np.nan),
        }

    def encode(self, log_probs_NC: NDArray[np.float64]) -> Encoded:
        """Encode log-probabilities."""
        # the finite range of float16: levels of uint8 need finite ends
        clipped = np.clip(log_probs_NC, -65504.0, 0.0)
        if self.values == "float16":
            return {"logp": clipped.astype(np.float16)}
        range_N2 = range_of(clipped)
        return {"logp": levels_of(clipped, range_N2), "logp_range": range_N2}

    def decode(self, arrays: Mapping[str, NDArray[Any]]) -> DecodedDense:
        """Read rows back, normalized."""
        log_probs = arrays["logp"].astype(np.float32)
        if self.values == "uint8":
            low, high = np.moveaxis(arrays["logp_range"].astype(np.float32), 1, 0)
            log_probs = low[:, None] + log_probs * ((high - low) / 255.0)[:, None]
        # summed in float64, since a float32 sum of many classes loses digits
        total = np.log(np.exp(log_probs.astype(np.float64)).sum(axis=1, keepdims=True))
        return DecodedDense((log_probs - total).astype(np.float32), self.num_classes)

    def fault_of(self, arrays: Mapping[str, NDArray[Any]]) -> str | None:
        """Return None: any stored numbers can be decoded."""

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
        reach_N1 = (eps_N + ROUNDING)[:, None]
        low_NC, high_NC = log_probs_NC - reach_N1, log_probs_NC + reach_N1
        if self.values == "float16":
            return whole_rows(float16_within(arrays["logp"], low_NC, high_NC, most=0.0))
        low_NC, high_NC = (np.clip(bound_NC, -65504.0, 0.0) for bound_NC in (low_NC, high_NC))
        # levels are relative to the stored range, which is compared on its own
        range_N2, levels_NC = arrays["logp_range"], arrays["logp"]
        ranged_N2 = between(range_of(low_NC), range_N2, range_of(high_NC))
        least_NC, most_NC = (levels_of(bound_NC, range_N2) for bound_NC in (low_NC, high_NC))
        return whole_rows(ranged_N2) & whole_rows(between(least_NC, levels_NC, most_NC))

    def settings(self) -> dict[str, Any]:
        """Return the parameters that can be configured, as JSON values: all of them."""
        return self.to_json()

    def to_json(self) -> dict[str, Any]:
        """Return the parameters as JSON values."""
        return {"kind": "dense", "values": self.values}


def range_of(clipped_NC: NDArray[np.float64]) -> NDArray[np.float16]:
    """Return the lowest number of each row rounded down, and the highest rounded up: (N, 2)."""
    low_N, high_N = -float16_above(-clipped_NC.min(axis=1)), float16_above(clipped_NC.max(axis=1))
    return np.stack([low_N, high_N], axis=1)


def levels_of(clipped_NC: NDArray[np.float64], range_N2: NDArray[np.float16]) -> NDArray[np.uint8]:
    """Return the level of each number in a range, 0 to 255; 0 for an empty range."""
    low_N1, high_N1 = np.split(range_N2.astype(np.float64), 2, axis=1)
    span_N1 = high_N1 - low_N1
    with np.errstate(invalid="ignore", divide="ignore"):
        levels_NC = np.where(span_N1 > 0, np.rint(255.0 * (clipped_NC - low_N1) / span_N1), 0.0)
    return np.clip(levels_NC, 0, 255).astype(np.uint8)
