"""The dense encoding of log-odds: outputs of teachers with a sigmoid for each class.

Log-odds and not log-probabilities are stored: a float16 or a level between the extremes of a row is
then as exact for classes that are almost certain as for those that are almost excluded.

Shapes: N rows, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from logitcache.encoding.arrays import ArraySpec, Encoded
from logitcache.encoding.decoded import DecodedSigmoid
from logitcache.encoding.dense import levels_of, range_of
from logitcache.encoding.intervals import ROUNDING, between, float16_within, whole_rows

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

__all__ = ["SigmoidEncoding"]

_LARGEST = 65504.0


@dataclass(frozen=True)
class SigmoidEncoding:
    """Encoding of the log-odds of all C classes.

    Attributes:
        num_classes: C.
        values: ``float16``, or ``uint8`` between the row's lowest and highest logit.
    """

    num_classes: int
    values: Literal["float16", "uint8"] = "float16"
    head: ClassVar[str] = "sigmoid"
    """Head of the teachers whose outputs it stores, see :data:`.HEADS`."""
    truncates: ClassVar[bool] = False
    """Whether classes are left out."""
    compressed_share: ClassVar[float] = 0.9
    """Compressed size of a unit, roughly, as a share of its size before compression."""
    required: ClassVar[str] = "sigmoid"
    """Name that the root has to require of readers."""

    def specs(self) -> dict[str, ArraySpec]:
        """Return the arrays of a group by name."""
        if self.values == "float16":
            return {"logit": ArraySpec((self.num_classes,), "float16", np.nan)}
        return {
            "logit": ArraySpec((self.num_classes,), "uint8", 0),
            "logit_range": ArraySpec((2,), "float16", np.nan),
        }

    def encode(self, logits_NC: NDArray[np.float64]) -> Encoded:
        """Encode logits."""
        clipped = np.clip(logits_NC, -_LARGEST, _LARGEST)
        if self.values == "float16":
            return {"logit": clipped.astype(np.float16)}
        range_N2 = range_of(clipped)
        return {"logit": levels_of(clipped, range_N2), "logit_range": range_N2}

    def decode(self, arrays: Mapping[str, NDArray[Any]]) -> DecodedSigmoid:
        """Read rows back."""
        logits = arrays["logit"].astype(np.float32)
        if self.values == "uint8":
            low, high = np.moveaxis(arrays["logit_range"].astype(np.float32), 1, 0)
            logits = low[:, None] + logits * ((high - low) / 255.0)[:, None]
        return DecodedSigmoid.of(logits)

    def fault_of(self, arrays: Mapping[str, NDArray[Any]]) -> str | None:
        """Return None: any stored numbers can be decoded."""

    def consistent(
        self,
        arrays: Mapping[str, NDArray[Any]],
        logits_NC: NDArray[np.float64],
        eps_N: NDArray[np.float64],
    ) -> NDArray[np.bool_]:
        """Return which stored rows may be the encoding of an output within eps of another one.

        Args:
            arrays: The stored rows.
            logits_NC: The recomputed logits.
            eps_N: Largest difference of a logit.
        """
        reach_N1 = (eps_N + ROUNDING)[:, None]
        low_NC, high_NC = logits_NC - reach_N1, logits_NC + reach_N1
        if self.values == "float16":
            return whole_rows(float16_within(arrays["logit"], low_NC, high_NC))
        low_NC, high_NC = (np.clip(each, -_LARGEST, _LARGEST) for each in (low_NC, high_NC))
        # levels are relative to the stored range, which is compared on its own
        range_N2, levels_NC = arrays["logit_range"], arrays["logit"]
        ranged_N2 = between(range_of(low_NC), range_N2, range_of(high_NC))
        least_NC, most_NC = (levels_of(bound_NC, range_N2) for bound_NC in (low_NC, high_NC))
        return whole_rows(ranged_N2) & whole_rows(between(least_NC, levels_NC, most_NC))

    def settings(self) -> dict[str, Any]:
        """Return the parameters that can be configured, as JSON values: all of them."""
        return self.to_json()

    def to_json(self) -> dict[str, Any]:
        """Return the parameters as JSON values."""
        return {"kind": "logits", "values": self.values}
