"""Integer basis of the log-probabilities of a teacher, fitted on a sample.

Centered log-probabilities of a row are approximated by ``scale * (mean + codes @ basis)``, with
integers in the parentheses. A product of integers below 2^24 is exact in float32 in any order of
summation, so every processor and accelerator computes the same scores, and ranks classes alike.

Shapes: N rows, C classes, D directions.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

__all__ = [
    "MAX_BASIS_CLASSES",
    "Basis",
    "PrincipalDirections",
    "centered",
    "parse_basis",
    "principal_directions",
]

_MOST_BYTES = 255  # of the codes of a row: the largest element that blosc shuffles
_MOST_BASIS_BYTES = 2**23  # in the attributes of a group, a document of JSON
_EXACT = 2**24  # float32 represents all integers up to here
_MOST_WIDE, _MOST_NARROW = 128, 8
# Narrow codes reach from -8 to 7: a direction is wide from this standard deviation in steps.
_WIDE = 1.6
# A direction whose codes would nearly all be zero is left out: standard deviation in steps.
_NEGLIGIBLE = 0.35
_LARGEST_SCALE = 1024.0  # float32 represents all scores in nats
_FRACTION_BITS, _LARGEST = 14, 2.0**14
# A product of a fixed-point row with a direction, at most 2^28 * 127 * C, is exact in float64.
MAX_BASIS_CLASSES = 2**18


class PrincipalDirections(NamedTuple):
    """Principal directions of centered log-probabilities.

    Attributes:
        mean: Mean of the rows, (C,).
        deviations: (D,) standard deviations along the directions, falling.
        directions: Orthonormal, (D, C).
    """

    mean: NDArray[np.float64]
    deviations: NDArray[np.float64]
    directions: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Basis:
    """Integer directions of centered log-probabilities.

    Attributes:
        mean: int32 (C,).
        directions: int8 (D, C), nearly orthogonal, all of nearly one length, by falling variance.
        wide: Number of leading directions with codes of 8 bits; the others have 4.
        scale: Nats of one unit of the scores.
        step: Distance of two codes along a direction in nats, about.
    """

    mean: NDArray[np.int32]
    directions: NDArray[np.int8]
    wide: int
    scale: float
    step: float

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Basis) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash((self.mean.tobytes(), self.wide, self.scale))

    @classmethod
    def of(cls, principal: PrincipalDirections, step: float) -> Self:
        """Return the directions whose codes are not nearly all zero, as integers.

        Args:
            principal: Principal directions of a sample.
            step: Distance of two codes along a direction, in nats.

        Raises:
            ValueError: There are too many classes for the attributes of a group.
        """
        num_classes = len(principal.mean)
        if num_classes > MAX_BASIS_CLASSES:
            raise ValueError(f"a basis of {num_classes} classes is too large")
        wide, kept = (
            max(1, int((principal.deviations > deviation * step).sum()))
            for deviation in (_WIDE, _NEGLIGIBLE)
        )
        wide = min(wide, _MOST_BYTES)
        kept = min(kept, _MOST_BASIS_BYTES // num_classes, 2 * _MOST_BYTES - wide)
        directions_DC = principal.directions[:kept]
        length = 127.0 / np.abs(directions_DC).max()
        scale = step / length
        mean_C = np.clip(principal.mean / scale, -_EXACT / 2, _EXACT / 2)
        return cls(
            mean=np.rint(mean_C).astype(np.int32),
            directions=np.rint(directions_DC * length).astype(np.int8),
            wide=min(wide, kept),
            scale=float(scale),
            step=step,
        )

    @property
    def count(self) -> int:
        """Number of directions, D."""
        return len(self.directions)

    @property
    def code_bytes(self) -> int:
        """Bytes of the codes of a row: two narrow ones share a byte."""
        return self.wide - (self.wide - self.count) // 2

    @property
    def is_exact(self) -> bool:
        """Whether all scores are integers that float32 represents."""
        most_D1 = np.full((self.count, 1), _MOST_NARROW)
        most_D1[: self.wide] = _MOST_WIDE
        sums_C = (np.abs(self.directions.astype(np.int64)) * most_D1).sum(axis=0)
        return bool((np.abs(self.mean.astype(np.int64)) + sums_C < _EXACT).all())

    def coefficients(self, x_NC: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the coefficients of centered rows in steps, before rounding: float64 (N, D).

        The product is one of integers that float64 represents, so that a row has the same
        coefficients in every batch and on every processor.
        """
        fixed_NC = np.rint(np.clip(x_NC, -_LARGEST, _LARGEST) * 2.0**_FRACTION_BITS)
        directions_DC = self.directions.astype(np.float64)
        products_ND = fixed_NC @ directions_DC.T * 2.0**-_FRACTION_BITS
        of_mean_D = directions_DC @ self.mean.astype(np.float64)
        lengths_D = (directions_DC * directions_DC).sum(axis=1)
        found: NDArray[np.float64] = (products_ND / self.scale - of_mean_D) / lengths_D
        return found

    def reach(self, eps_N: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return by how much coefficients change at most with log-probabilities: (N, D).

        Args:
            eps_N: Largest change of a log-probability of each row, in nats.
        """
        sizes_DC = np.abs(self.directions.astype(np.float64))
        # centering subtracts a mean that changes by as much
        per_nat_D = 2.0 * sizes_DC.sum(axis=1) / (sizes_DC * sizes_DC).sum(axis=1) / self.scale
        changes_ND: NDArray[np.float64] = eps_N[:, None] * per_nat_D
        return changes_ND

    def scores(self, codes_ND: NDArray[np.int8]) -> NDArray[np.float32]:
        """Return integer scores of all classes, exact in float32: (N, C)."""
        found: NDArray[np.float32] = codes_ND.astype(np.float32) @ self.directions.astype(
            np.float32
        )
        found += self.mean.astype(np.float32)
        return found

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values: int32 and int8 as base64, little-endian, in C order."""
        return {
            "directions": self.count,
            "wide": self.wide,
            "scale": self.scale,
            "step": self.step,
            "mean": base64.b64encode(self.mean.astype("<i4").tobytes()).decode(),
            "basis": base64.b64encode(self.directions.tobytes()).decode(),
        }


def centered(log_probs_NC: NDArray[np.float64]) -> NDArray[np.float64]:
    """Subtract the mean over the classes of each row."""
    # finite, so that the mean is: a probability of exp(-2^14) is none
    clipped_NC = np.maximum(log_probs_NC, -_LARGEST)
    result: NDArray[np.float64] = clipped_NC - clipped_NC.mean(axis=1, keepdims=True)
    return result


def parse_basis(values: Mapping[str, Any], num_classes: int) -> Basis | None:
    """Parse a basis in the attributes of a group; None for one that does not fit.

    Args:
        values: Values as of :meth:`Basis.to_json`.
        num_classes: C.
    """
    count, wide, scale, step = (
        values.get(name) for name in ("directions", "wide", "scale", "step")
    )
    texts = [values.get(name) for name in ("mean", "basis")]
    if type(count) is not int or type(wide) is not int:
        return None
    if type(scale) is not float or type(step) is not float or step <= 0:
        return None
    if not (1 <= wide <= count <= 2 * _MOST_BYTES and 0 < scale <= _LARGEST_SCALE):
        return None
    if num_classes > MAX_BASIS_CLASSES or not all(isinstance(text, str) for text in texts):
        return None
    try:
        mean, directions = (base64.b64decode(str(text), validate=True) for text in texts)
    except ValueError:
        return None
    if (len(mean), len(directions)) != (4 * num_classes, count * num_classes):
        return None
    basis = Basis(
        # copies, since arrays over bytes are read-only
        np.frombuffer(mean, "<i4").astype(np.int32),
        np.frombuffer(directions, np.int8).reshape(count, num_classes).copy(),
        wide,
        scale,
        step,
    )
    usable = basis.directions.any(axis=1).all() and basis.code_bytes <= _MOST_BYTES
    return basis if usable and basis.is_exact else None


def principal_directions(log_probs_NC: NDArray[np.float64]) -> PrincipalDirections:
    """Return the principal directions of a sample of log-probabilities."""
    x_NC = centered(log_probs_NC)
    mean_C = x_NC.mean(axis=0)
    rows_NC = x_NC - mean_C
    rows, classes = rows_NC.shape
    if rows >= classes:
        variances, vectors = np.linalg.eigh(rows_NC.T @ rows_NC / rows)
        directions = vectors.T[::-1]
    else:
        # the same directions from the smaller matrix of products of rows
        variances, vectors = np.linalg.eigh(rows_NC @ rows_NC.T / rows)
        directions = vectors.T[::-1] @ rows_NC
        directions /= np.maximum(np.linalg.norm(directions, axis=1, keepdims=True), 1e-30)
    deviations = np.sqrt(np.maximum(variances[::-1], 0.0))
    # the sign of an eigenvector is arbitrary: its largest component becomes positive
    peak = np.take_along_axis(directions, np.abs(directions).argmax(axis=1)[:, None], axis=1)
    return PrincipalDirections(mean_C, deviations, directions * np.where(peak < 0, -1.0, 1.0))
