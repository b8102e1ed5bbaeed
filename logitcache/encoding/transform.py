"""The transform encoding: all classes by principal directions, and refinements of the likely ones.

A row is stored as its codes along the directions of a :class:`.Basis`, which give every class a
score, and as a correction for each of the m classes with the highest scores. In contrast to the
sparse encoding it approximates the whole distribution, so it is as faithful at T = 4 as at T = 1.

Shapes: N rows, C classes, D directions, m refined classes, f of them with 8 bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from logitcache.encoding.arrays import ArraySpec, Encoded, encode_in_parts
from logitcache.encoding.basis import Basis, centered
from logitcache.encoding.decoded import DecodedDense
from logitcache.encoding.intervals import ROUNDING, between, whole_rows

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

__all__ = ["MAX_REFINED", "MAX_REFINED_BYTES", "NOT_COMPUTED", "TransformEncoding"]

_FINE, _REFINED_STEP = 8, 0.6
MAX_REFINED_BYTES = 255
"""Of the corrections of a row: blosc shuffles elements of up to 255 bytes."""
MAX_REFINED = 2 * MAX_REFINED_BYTES - _FINE
"""Classes that :meth:`TransformEncoding.of` corrects."""

NOT_COMPUTED = 0x80
"""The first byte of a row without outputs; as int8 -128, which is no code."""

# The temperature at which the mass of the other classes is exact: between the usual 1 and 4.
_OFFSET_B = 0.5
# The likeliest class must stay the likeliest: steps of its correction in one of the others.
_FINENESS = 8.0


@dataclass(frozen=True)
class TransformEncoding:
    """Encoding of all C classes by codes along principal directions.

    Attributes:
        num_classes: C.
        basis: The directions.
        refined: m, the number of classes with a correction, at most C.
        fine: f, how many of them, those with the highest scores, have corrections of 8 bits: 127
            eighths of a step in either direction.
        refined_step: Distance of two corrections of 4 bits in nats: from -8 to 7 steps.
    """

    num_classes: int
    basis: Basis
    refined: int
    fine: int
    refined_step: float

    head: ClassVar[str] = "softmax"
    """Head of the teachers whose outputs it stores, see :data:`.HEADS`."""
    truncates: ClassVar[bool] = False
    """Whether classes are left out."""

    compressed_share: ClassVar[float] = 0.6
    """Compressed size of a unit, roughly, as a share of its size before compression."""

    required: ClassVar[str] = "transform"
    """Name that the root has to require of readers."""

    @classmethod
    def of(cls, basis: Basis, refined: int) -> TransformEncoding:
        """Return the encoding with the usual corrections of so many classes, if there are.

        Args:
            basis: The directions.
            refined: m, at most :data:`MAX_REFINED`.
        """
        num_classes = len(basis.mean)
        refined = min(refined, num_classes)
        return cls(num_classes, basis, refined, min(_FINE, refined), _REFINED_STEP)

    def specs(self) -> dict[str, ArraySpec]:
        """Return the arrays of a group by name."""
        width = self.basis.code_bytes
        return {
            "coefficients": ArraySpec((width,), "uint8", NOT_COMPUTED, "transposed"),
            "refinements": ArraySpec((self.refined_bytes,), "uint8", 0, "transposed"),
        }

    @property
    def refined_bytes(self) -> int:
        """Bytes of the corrections of a row."""
        return self.fine - (self.fine - self.refined) // 2

    def encode(self, log_probs_NC: NDArray[np.float64]) -> Encoded:
        """Encode log-probabilities."""
        return encode_in_parts(
            lambda rows: self._encode_rows(log_probs_NC[rows]), len(log_probs_NC), self.num_classes
        )

    def _encode_rows(self, log_probs_NC: NDArray[np.float64]) -> Encoded:
        basis = self.basis
        codes_ND = _rounded(basis.coefficients(centered(log_probs_NC)), basis.wide)
        scores_NC = basis.scores(codes_ND)
        corrections_Nm = self._corrections(log_probs_NC, scores_NC)
        steps_Nm = _rounded(corrections_Nm / self.correction_steps(), self.fine)
        return {
            "coefficients": _packed(codes_ND, basis.wide),
            "refinements": _packed(steps_Nm, self.fine),
        }

    def decode(self, arrays: Mapping[str, NDArray[Any]]) -> DecodedDense:
        """Read rows back, normalized; rows that were not computed become NaN."""
        stored, basis = arrays["coefficients"], self.basis
        logits_NC = basis.scores(_unpacked(stored, basis.wide, basis.count))
        ids_Nm = self._refined_ids(logits_NC)
        logits_NC *= np.float32(basis.scale)
        steps_Nm = _unpacked(arrays["refinements"], self.fine, self.refined)
        row_N1 = np.arange(len(ids_Nm))[:, None]
        logits_NC[row_N1, ids_Nm] += steps_Nm * self.correction_steps().astype(np.float32)
        logits_NC -= logits_NC.max(axis=1, keepdims=True)
        # summed in float64, since a float32 sum of many classes loses digits
        total_N1 = np.log(np.exp(logits_NC.astype(np.float64)).sum(axis=1, keepdims=True))
        log_probs_NC: NDArray[np.float32] = (logits_NC - total_N1).astype(np.float32)
        log_probs_NC[stored[:, 0] == NOT_COMPUTED] = np.nan
        return DecodedDense(log_probs_NC, self.num_classes)

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
        reach_N = eps_N + ROUNDING
        wide, fine = self.basis.wide, self.fine
        codes_ND = _unpacked(arrays["coefficients"], wide, self.basis.count)
        exact_ND = self.basis.coefficients(centered(log_probs_NC))
        reach_ND = self.basis.reach(reach_N)
        least_ND, most_ND = (_rounded(exact_ND + by_ND, wide) for by_ND in (-reach_ND, reach_ND))
        coded_ND = between(least_ND, codes_ND, most_ND)
        # corrections are relative to the scores of the stored codes, which are exact
        exact_Nm = self._corrections(log_probs_NC, self.basis.scores(codes_ND))
        reach_N1 = 2.0 * reach_N[:, None]  # of the class and of the offset
        least_Nm, most_Nm = (
            _rounded((exact_Nm + by_N1) / self.correction_steps(), fine)
            for by_N1 in (-reach_N1, reach_N1)
        )
        steps_Nm = _unpacked(arrays["refinements"], fine, self.refined)
        corrected_Nm = between(least_Nm, steps_Nm, most_Nm)
        computed_N = arrays["coefficients"][:, 0] != NOT_COMPUTED
        consistent_N: NDArray[np.bool_] = computed_N & whole_rows(coded_ND)
        return consistent_N & whole_rows(corrected_Nm)

    def settings(self) -> dict[str, Any]:
        """Return the parameters without the numbers of the basis, as JSON values."""
        return {
            "kind": "transform",
            "step": self.basis.step,
            "directions": self.basis.count,
            "refined": self.refined,
            "fine": self.fine,
            "refined_step": self.refined_step,
        }

    def to_json(self) -> dict[str, Any]:
        """Return the parameters as JSON values."""
        return self.settings() | self.basis.to_json()

    def correction_steps(self) -> NDArray[np.float64]:
        """Return the distance of two corrections of each refined class, in nats: (m,)."""
        steps_m = np.full(self.refined, self.refined_step)
        steps_m[: self.fine] /= _FINENESS
        return steps_m

    def _refined_ids(self, scores_NC: NDArray[np.float32]) -> NDArray[np.int64]:
        """Return the classes with the m highest scores: (N, m).

        The f highest first, ascending, then the others, ascending. Of equal scores, those of the
        lowest ids are higher.
        """
        rows, classes = scores_NC.shape
        # distinct integers, whose order does not depend on the algorithm
        ranks_NC = scores_NC.astype(np.int64) * classes - np.arange(classes)
        bounds = [classes - self.refined, classes - self.fine]
        ordered_NC = np.partition(ranks_NC, [bound for bound in bounds if bound < classes], axis=1)
        refined_NC = ranks_NC >= ordered_NC[:, bounds[0], None]
        if self.fine == 0:
            return np.nonzero(refined_NC)[1].reshape(rows, self.refined)
        fine_NC = ranks_NC >= ordered_NC[:, bounds[1], None]
        parts = [(fine_NC, self.fine), (refined_NC & ~fine_NC, self.refined - self.fine)]
        return np.concatenate(
            [np.nonzero(chosen)[1].reshape(rows, count) for chosen, count in parts], axis=1
        )

    def _corrections(
        self, log_probs_NC: NDArray[np.float64], scores_NC: NDArray[np.float32]
    ) -> NDArray[np.float64]:
        """Return by how much the scores of the refined classes are too low, in nats: (N, m).

        Scores are determined up to an offset for each row. It is chosen so that the other classes
        have their exact mass together at T = 2.
        """
        ids_Nm = self._refined_ids(scores_NC)
        approximate_NC = scores_NC * np.float64(self.basis.scale)
        log_masses_N1 = [
            _log_mass_of_others(rows_NC, ids_Nm) for rows_NC in (log_probs_NC, approximate_NC)
        ]
        exact_Nm, approximate_Nm = (
            np.take_along_axis(rows_NC, ids_Nm, axis=1)
            for rows_NC in (log_probs_NC, approximate_NC)
        )
        corrections_Nm: NDArray[np.float64] = (
            exact_Nm - approximate_Nm - (log_masses_N1[0] - log_masses_N1[1])
        )
        return corrections_Nm


def _log_mass_of_others(
    rows_NC: NDArray[np.float64], ids_Nm: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the logsumexp at T = 2 over the classes that are not refined, times 2: (N, 1).

    Of all classes where all of them are refined.
    """
    scaled_NC = _OFFSET_B * rows_NC
    if ids_Nm.shape[1] < rows_NC.shape[1]:
        np.put_along_axis(scaled_NC, ids_Nm, -np.inf, axis=1)
    peak_N1 = scaled_NC.max(axis=1, keepdims=True)
    log_mass_N1 = np.log(np.exp(scaled_NC - peak_N1).sum(axis=1, keepdims=True)) + peak_N1
    result: NDArray[np.float64] = log_mass_N1 / _OFFSET_B
    return result


def _rounded(values_NK: NDArray[np.float64], wide: int) -> NDArray[np.int8]:
    """Return the nearest codes: of 8 bits (-127 to 127) in the first columns, then -8 to 7."""
    codes_NK = np.rint(values_NK)
    codes_NK[:, :wide] = np.clip(codes_NK[:, :wide], -127, 127)
    codes_NK[:, wide:] = np.clip(codes_NK[:, wide:], -8, 7)
    return codes_NK.astype(np.int8)


def _packed(codes_NK: NDArray[np.int8], wide: int) -> NDArray[np.uint8]:
    """Return the bytes of codes: one each of the first columns, then one for two codes.

    The first of the two is in the lower four bits.
    """
    narrow_NK = codes_NK[:, wide:].view(np.uint8) & 15
    if narrow_NK.shape[1] % 2:
        narrow_NK = np.pad(narrow_NK, ((0, 0), (0, 1)))
    pairs_NK = narrow_NK[:, 0::2] | narrow_NK[:, 1::2] << 4
    return np.concatenate([codes_NK[:, :wide].view(np.uint8), pairs_NK], axis=1)


def _unpacked(packed_Nk: NDArray[np.uint8], wide: int, count: int) -> NDArray[np.int8]:
    """Return the codes of :func:`_packed`: int8 (N, count)."""
    codes_Nk = packed_Nk.view(np.int8)
    pairs_Nk = codes_Nk[:, wide:]
    narrow_NK = np.stack([pairs_Nk << 4 >> 4, pairs_Nk >> 4], axis=2).reshape(len(packed_Nk), -1)
    return np.concatenate([codes_Nk[:, :wide], narrow_NK], axis=1)[:, :count]
