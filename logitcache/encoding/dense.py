"""The dense encoding: every class, as float16 or as one byte between the row's extremes.

Shapes: N rows, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from logitcache.encoding.arrays import ArraySpec, Encoded

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

__all__ = ["DecodedDense", "DenseEncoding"]


@dataclass(frozen=True)
class DecodedDense:
    """Dense targets: log-probabilities at T = 1, float32 (N, C), that sum to one."""

    log_probs: NDArray[np.float32]


@dataclass(frozen=True)
class DenseEncoding:
    """How all C classes become arrays.

    Attributes:
        num_classes: C.
        values: ``float16``, or ``uint8`` between the row's lowest and highest log-probability.
    """

    num_classes: int
    values: Literal["float16", "uint8"] = "float16"

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
        clipped = np.clip(log_probs_NC, -65504.0, 0.0)
        if self.values == "float16":
            return {"logp": clipped.astype(np.float16)}
        low = _round_down(clipped.min(axis=1))
        high = _round_up(clipped.max(axis=1))
        span = (high.astype(np.float64) - low.astype(np.float64))[:, None]
        offset = clipped - low.astype(np.float64)[:, None]
        with np.errstate(invalid="ignore", divide="ignore"):
            level = np.where(span > 0, np.rint(255.0 * offset / span), 0.0)
        return {
            "logp": np.clip(level, 0, 255).astype(np.uint8),
            "logp_range": np.stack([low, high], axis=1),
        }

    def decode(self, arrays: Mapping[str, NDArray[Any]]) -> DecodedDense:
        """Read rows back, normalised."""
        log_probs = arrays["logp"].astype(np.float32)
        if self.values == "uint8":
            low, high = np.moveaxis(arrays["logp_range"].astype(np.float32), 1, 0)
            log_probs = low[:, None] + log_probs * ((high - low) / 255.0)[:, None]
        total = np.log(np.exp(log_probs.astype(np.float64)).sum(axis=1, keepdims=True))
        return DecodedDense((log_probs - total).astype(np.float32))

    def to_json(self) -> dict[str, Any]:
        """Return the parameters as JSON values."""
        return {"kind": "dense", "values": self.values}


def _round_down(values: NDArray[np.float64]) -> NDArray[np.float16]:
    """Return the largest float16 that is not above each value."""
    near = values.astype(np.float16)
    lower: NDArray[np.float16] = np.nextafter(near, np.float16(-65504.0))
    return np.where(near.astype(np.float64) > values, lower, near)


def _round_up(values: NDArray[np.float64]) -> NDArray[np.float16]:
    """Return the smallest float16 that is not below each value."""
    return -_round_down(-values)
