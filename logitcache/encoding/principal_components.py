"""Principal components of the channels of features.

For a squared loss after a linear projector, the gradient inside of the kept subspace is exact, and
the part outside of it is lost.

Shapes: N rows, D channels, d directions.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

__all__ = ["Principal", "parse_principal"]


@dataclass(frozen=True)
class Principal:
    """Principal directions of the channels of a tap.

    Attributes:
        mean: float32 (D,).
        basis: float32 (D, d), orthonormal columns.
    """

    mean: NDArray[np.float32]
    basis: NDArray[np.float32]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Principal) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(self.mean.tobytes())

    @classmethod
    def fit(cls, rows_ND: NDArray[np.float64], count: int) -> Principal:
        """Return the eigenvectors of the covariance of a sample with the largest eigenvalues."""
        mean = rows_ND.mean(axis=0)
        centered = rows_ND - mean
        _, vectors = np.linalg.eigh(centered.T @ centered / len(rows_ND))
        basis = vectors[:, ::-1][:, :count]
        # the sign of an eigenvector is arbitrary: its largest component becomes positive
        peak = basis[np.abs(basis).argmax(axis=0), np.arange(basis.shape[1])]
        return cls(mean.astype(np.float32), (basis * np.sign(peak)).astype(np.float32))

    def to_json(self) -> dict[str, Any]:
        """Return both as base64 of little-endian float32, with the number of directions."""
        return {
            "directions": self.basis.shape[1],
            "mean": base64.b64encode(self.mean.astype("<f4").tobytes()).decode(),
            "basis": base64.b64encode(self.basis.astype("<f4").tobytes()).decode(),
        }


def parse_principal(values: Mapping[str, Any], directions: int) -> Principal:
    """Parse the directions in the attributes of a group.

    Args:
        values: Values as of :meth:`Principal.to_json`.
        directions: Required number of directions.

    Raises:
        ValueError: They are damaged, or of another shape.
    """
    mean = np.frombuffer(base64.b64decode(values["mean"], validate=True), "<f4")
    basis = np.frombuffer(base64.b64decode(values["basis"], validate=True), "<f4")
    if values["directions"] != directions or len(basis) != directions * len(mean):
        raise ValueError("the principal directions have another shape than the channels")
    # copies, since arrays over bytes are read-only
    return Principal(mean.copy(), basis.reshape(len(mean), directions).copy())
