"""What an encoding loses, measured on rows whose dense answer is at hand.

Truncation is what the choice of K loses with exact numbers; coding is what rounding adds to it.
Shapes: N rows, C classes; b = 1 / T.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from logitcache.encoding.sparse import DecodedSparse, SparseEncoding
from logitcache.encoding.tail import log_masses, quadratic

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from logitcache.encoding.choice import Encoding
    from logitcache.encoding.dense import DecodedDense

__all__ = ["TEMPERATURES", "Fidelity", "Loss", "measure_fidelity"]

TEMPERATURES = (1.0, 2.0, 4.0)

_STUDENT = 0.6  # the student that gradients are measured at: the teacher's logits times this
_ROWS_AT_ONCE = 64


@dataclass(frozen=True)
class Loss:
    """What is lost at one temperature.

    Attributes:
        truncation: KL(teacher || its K classes and exact tail), nats, mean over rows.
        coding: What rounding adds to that KL.
        gradient: Norm of the error of the loss's gradient over the norm of the gradient, for a
            student whose logits are 0.6 of the teacher's.
    """

    truncation: float
    coding: float
    gradient: float


@dataclass(frozen=True)
class Fidelity:
    """How well targets stand for a teacher.

    Attributes:
        rows: How many rows it was measured on.
        top1: Share of rows whose likeliest class is kept.
        losses: By temperature.
    """

    rows: int
    top1: float
    losses: dict[float, Loss]

    def kl(self, temperature: float) -> float:
        """Return the whole KL at a temperature that was measured, in nats."""
        loss = self.losses[temperature]
        return loss.truncation + loss.coding

    def to_json(self) -> dict[str, Any]:
        """Return the measurement as JSON values."""
        return {
            "rows": self.rows,
            "top1": self.top1,
            "temperatures": {
                f"{temperature:g}": {
                    "kl_truncation": loss.truncation,
                    "kl_coding": loss.coding,
                    "gradient_error": loss.gradient,
                }
                for temperature, loss in self.losses.items()
            },
        }


def measure_fidelity(
    encoding: Encoding,
    log_probs_NC: NDArray[np.float64],
    temperatures: Sequence[float] = TEMPERATURES,
) -> Fidelity:
    """Encode rows, read them back, and compare.

    Args:
        encoding: How they are stored.
        log_probs_NC: Exact log-probabilities.
        temperatures: At which the distributions are compared.
    """
    rows = len(log_probs_NC)
    decoded = encoding.decode(encoding.encode(log_probs_NC))
    sums = {temperature: np.zeros(4) for temperature in temperatures}
    agreeing = 0
    for start in range(0, rows, _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        exact_NC = log_probs_NC[part]
        for temperature in temperatures:
            b = 1.0 / temperature
            stored_NC = _read_back(decoded, part, exact_NC.shape[1], b)
            cut_NC = _cut(encoding, exact_NC, b)
            sums[temperature] += _sums(
                _at(exact_NC, b), cut_NC, stored_NC, _at(exact_NC, _STUDENT * b)
            )
        agreeing += int((_likeliest(decoded, part) == exact_NC.argmax(1)).sum())
    losses = {
        temperature: Loss(
            truncation=float(truncated / rows),
            coding=float((whole - truncated) / rows),
            gradient=float(np.sqrt(error / norm)) if norm else 0.0,
        )
        for temperature, (truncated, whole, error, norm) in sums.items()
    }
    return Fidelity(rows, agreeing / rows, losses)


def _likeliest(decoded: DecodedSparse | DecodedDense, part: slice) -> NDArray[np.int64]:
    """Return the class that a reader takes for the likeliest."""
    best_N: NDArray[np.int64] = decoded.log_probs[part].argmax(axis=1)
    if isinstance(decoded, DecodedSparse):
        best_N = decoded.class_ids[part][np.arange(len(best_N)), best_N]
    return best_N


def _sums(
    exact_NC: NDArray[np.float64],
    cut_NC: NDArray[np.float64],
    stored_NC: NDArray[np.float64],
    student_NC: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return KL by truncation, whole KL, squared error and squared norm of the gradient."""
    p_NC = np.exp(exact_NC)
    return np.array(
        [
            (p_NC * (exact_NC - cut_NC)).sum(),
            (p_NC * (exact_NC - stored_NC)).sum(),
            ((np.exp(stored_NC) - p_NC) ** 2).sum(),
            ((np.exp(student_NC) - p_NC) ** 2).sum(),
        ]
    )


def _at(log_probs_NC: NDArray[np.float64], b: float) -> NDArray[np.float64]:
    """Return the distribution at temperature 1 / b, as log-probabilities."""
    scaled = b * log_probs_NC
    peak = scaled.max(axis=1, keepdims=True)
    normalised: NDArray[np.float64] = (
        scaled - peak - np.log(np.exp(scaled - peak).sum(axis=1, keepdims=True))
    )
    return normalised


def _cut(encoding: Encoding, exact_NC: NDArray[np.float64], b: float) -> NDArray[np.float64]:
    """Return what the K classes and an exact tail say at a temperature."""
    if not isinstance(encoding, SparseEncoding):
        return _at(exact_NC, b)
    present_NC = encoding.kept(exact_NC)
    return _spread(exact_NC, present_NC, log_masses(exact_NC, present_NC), b)


def _read_back(
    decoded: DecodedSparse | DecodedDense, part: slice, classes: int, b: float
) -> NDArray[np.float64]:
    """Return what a reader of the cache makes of some rows at a temperature."""
    if not isinstance(decoded, DecodedSparse):
        return _at(decoded.log_probs[part].astype(np.float64), b)
    ids_NK, log_p_NK = decoded.class_ids[part], decoded.log_probs[part].astype(np.float64)
    log_probs_NC = np.full((len(ids_NK), classes), -np.inf)
    rows_NK = np.broadcast_to(np.arange(len(ids_NK))[:, None], ids_NK.shape)
    used_NK = np.isfinite(log_p_NK)
    log_probs_NC[rows_NK[used_NK], ids_NK[used_NK]] = log_p_NK[used_NK]
    tail_N2 = decoded.tail[part].astype(np.float64)
    return _spread(log_probs_NC, np.isfinite(log_probs_NC), tail_N2, b)


def _spread(
    log_probs_NC: NDArray[np.float64],
    present_NC: NDArray[np.bool_],
    tail_N2: NDArray[np.float64],
    b: float,
) -> NDArray[np.float64]:
    """Spread the tail's mass over the absent classes, at a temperature."""
    absent_N = np.maximum((~present_NC).sum(axis=1), 1)
    through_0, through_quarter, through_1 = quadratic(b)
    log_mass_N = (
        through_0 * np.log(absent_N) + through_quarter * tail_N2[:, 1] + through_1 * tail_N2[:, 0]
    )
    each_N1 = (log_mass_N - np.log(absent_N))[:, None]
    scaled_NC = np.where(present_NC, b * np.where(present_NC, log_probs_NC, 0.0), each_N1)
    return _at(scaled_NC, 1.0)
