"""Losses of encoded feature maps, measured on rows whose exact values are available.

Reduction is the loss by storing fewer numbers (principal directions, projected back to all
channels); coding is the further loss by rounding. Where a training loss needs the reduced rows,
those count as the exact ones. Everything is a sum over rows, as in ``fidelity.py``.

Shapes: N rows.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

__all__ = ["FeatureFidelity", "feature_fidelity_of", "row_feature_losses"]

_STUDENT = 0.6  # the student that gradients are measured at: the teacher's features times this


@dataclass(frozen=True)
class FeatureFidelity:
    """Measured encoding loss of features.

    Attributes:
        rows: Number of rows that it was measured on.
        reduction: Relative error by reduction, in the norm over all rows; None where the features
            before it were not available.
        coding: Relative error by coding.
        error: Relative error by both.
        cosine: Cosine of stored and exact row, mean over rows; 1 between two rows of zeros.
        gradient: Norm of the error of the gradient of a squared distance over the norm of that
            gradient, for a student whose features are 0.6 of the teacher's.
    """

    rows: int
    reduction: float | None
    coding: float
    error: float
    cosine: float
    gradient: float

    def to_json(self) -> dict[str, Any]:
        """Return the measurement as JSON values."""
        return asdict(self)


def row_feature_losses(
    exact_N: NDArray[np.floating],
    stored_N: NDArray[np.floating],
    reduced_N: NDArray[np.floating] | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Return the encoding loss of each row.

    Args:
        exact_N: Exact features (N, ...).
        stored_N: Features after reduction, coding and decoding, in the shape of the exact ones.
        reduced_N: Features after reduction, in that shape; None where the exact ones are reduced
            already and the loss of that is not known.

    Returns:
        (N,) by name: ``rows`` (ones), ``cosine``, and squared norms: ``energy2`` of the exact row,
        ``reduced2``, ``coded2`` and ``error2`` of the errors by reduction, coding and both, and
        ``gradient2`` of the gradient.

    To be summed by :func:`logitcache.encoding.fidelity.add_up`.
    """
    exact, stored = _rows(exact_N), _rows(stored_N)
    reduced = exact if reduced_N is None else _rows(reduced_N)
    energy, kept = _squared(exact), _squared(stored)
    norms = np.sqrt(energy * kept)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine = np.einsum("nd,nd->n", exact, stored) / norms
    return {
        "rows": np.ones(len(exact)),
        "cosine": np.where(norms > 0, cosine, (energy == kept).astype(np.float64)),
        "energy2": energy,
        **({} if reduced_N is None else {"reduced2": _squared(reduced - exact)}),
        "coded2": _squared(stored - reduced),
        "error2": _squared(stored - exact),
        "gradient2": (1 - _STUDENT) ** 2 * energy,
    }


def feature_fidelity_of(sums: Mapping[str, float]) -> FeatureFidelity:
    """Return the measurement from sums over at least one row."""

    def relative(changed: str, whole: str = "energy2") -> float:
        return math.sqrt(sums[changed] / sums[whole]) if sums[whole] else 0.0

    return FeatureFidelity(
        rows=int(sums["rows"]),
        reduction=relative("reduced2") if "reduced2" in sums else None,
        coding=relative("coded2"),
        error=relative("error2"),
        cosine=sums["cosine"] / sums["rows"],
        gradient=relative("error2", "gradient2"),
    )


def _rows(values_N: NDArray[np.floating]) -> NDArray[np.float64]:
    return values_N.reshape(len(values_N), -1).astype(np.float64)


def _squared(values_ND: NDArray[np.float64]) -> NDArray[np.float64]:
    squares: NDArray[np.float64] = np.einsum("nd,nd->n", values_ND, values_ND)
    return squares
