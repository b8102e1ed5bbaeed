"""Losses of encoded logits, measured on rows whose dense outputs are available.

Truncation is the loss by storing K classes with exact numbers; coding is the further loss by
rounding. Everything is a sum over rows, so separate measurements can be added up: the sums are
correctly rounded, so their bits do not depend on the order.
Shapes: N rows, C classes; b = 1 / T.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from logitcache.encoding.decoded import spread_tail
from logitcache.encoding.heads import HEADS
from logitcache.encoding.sparse import SparseEncoding
from logitcache.encoding.tail import log_masses

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from logitcache.encoding.arrays import Encoded
    from logitcache.encoding.decoded import Decoded
    from logitcache.encoding.kinds import Encoding

__all__ = [
    "TEMPERATURES",
    "Fidelity",
    "Loss",
    "RowSums",
    "add_up",
    "fidelity_of",
    "measure_fidelity",
    "row_losses",
]

TEMPERATURES = (1.0, 2.0, 4.0)

RowSums = dict[str, float]
"""Sums over rows by name: ``rows``, ``top1`` and, for each T, the names of :func:`row_losses`."""

_STUDENT = 0.6  # the student that gradients are measured at: the teacher's logits times this


@dataclass(frozen=True)
class Loss:
    """Encoding loss at one temperature.

    Attributes:
        truncation: KL(teacher || its K classes and exact tail) in nats, mean over rows.
        coding: Further KL divergence by rounding, in nats.
        gradient: Norm of the error of the loss's gradient over the norm of the gradient, for a
            student whose logits are 0.6 of the teacher's.
    """

    truncation: float
    coding: float
    gradient: float


@dataclass(frozen=True)
class Fidelity:
    """Measured encoding loss of logits.

    Attributes:
        rows: Number of rows that it was measured on.
        top1: Share of rows whose most probable class is kept.
        losses: Losses by temperature.
    """

    rows: int
    top1: float
    losses: dict[float, Loss]

    def kl(self, temperature: float) -> float:
        """Return the total KL divergence at a measured temperature, in nats."""
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
    """Measure the loss of encoding and decoding rows.

    Args:
        encoding: The encoding.
        log_probs_NC: Exact log-probabilities.
        temperatures: Temperatures at which the distributions are compared.
    """
    encoded = encoding.encode(log_probs_NC)
    return fidelity_of(add_up([row_losses(encoding, log_probs_NC, encoded, temperatures)]))


def row_losses(
    encoding: Encoding,
    log_probs_NC: NDArray[np.float64],
    encoded: Encoded,
    temperatures: Sequence[float] = TEMPERATURES,
) -> dict[str, NDArray[np.float64]]:
    """Return the encoding loss of each row, which does not depend on the other rows.

    Args:
        encoding: The encoding.
        log_probs_NC: Exact log-probabilities; for ``sigmoid``, logits.
        encoded: The same rows, encoded.
        temperatures: Temperatures at which the distributions are compared.

    Returns:
        (N,) by name: ``rows`` (ones), ``top1`` (1 where the top class is kept) and for each T
        ``kl_truncated@T`` and ``kl_stored@T`` in nats, ``error2@T`` and ``gradient2@T``: squared
        norms of the error of the loss's gradient and of that gradient.
    """
    parts = [
        _part_losses(encoding, log_probs_NC[rows], decoded, temperatures)
        for rows, decoded in encoding.decode(encoded).parts()
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def add_up(parts: Iterable[Mapping[str, Any]]) -> RowSums:
    """Return sums over rows, by name, of numbers or arrays (N,); correctly rounded in any order."""
    columns: dict[str, list[float]] = {}
    for part in parts:
        for name, values in part.items():
            columns.setdefault(name, []).extend(np.atleast_1d(values).tolist())
    return {name: math.fsum(values) for name, values in columns.items()}


def fidelity_of(sums: Mapping[str, float]) -> Fidelity:
    """Return the measurement from sums over at least one row."""
    rows = sums["rows"]
    losses = {}
    for name in sums:
        kind, _, text = name.partition("@")
        if kind == "kl_truncated":
            truncated, stored = sums[name], sums[f"kl_stored@{text}"]
            error2, gradient2 = sums[f"error2@{text}"], sums[f"gradient2@{text}"]
            losses[float(text)] = Loss(
                truncation=truncated / rows,
                coding=(stored - truncated) / rows,
                gradient=math.sqrt(error2 / gradient2) if gradient2 else 0.0,
            )
    return Fidelity(int(rows), sums["top1"] / rows, losses)


def _part_losses(
    encoding: Encoding,
    exact_NC: NDArray[np.float64],
    decoded: Decoded,
    temperatures: Sequence[float],
) -> dict[str, NDArray[np.float64]]:
    """Return the losses of a few rows; each temperature takes several arrays (N, C)."""
    found = {
        "rows": np.ones(len(exact_NC)),
        "top1": (decoded.top_class() == exact_NC.argmax(1)).astype(np.float64),
    }
    for temperature in temperatures:
        b = 1.0 / temperature
        stored_NC = decoded.outcome_log_probs(b)
        outcomes = HEADS[encoding.head].outcomes
        own_NC, student_NC = (outcomes(exact_NC, share * b) for share in (1.0, _STUDENT))
        cut_NC = own_NC  # a dense encoding leaves no class out
        if isinstance(encoding, SparseEncoding):
            present_NC = encoding.kept(exact_NC)
            cut_NC = spread_tail(exact_NC, present_NC, log_masses(exact_NC, present_NC), b)
        compared = _compared(own_NC, cut_NC, stored_NC, student_NC)
        found |= {f"{name}@{temperature:g}": values for name, values in compared.items()}
    return found


def _compared(
    exact_NC: NDArray[np.float64],
    cut_NC: NDArray[np.float64],
    stored_NC: NDArray[np.float64],
    student_NC: NDArray[np.float64],
) -> dict[str, NDArray[np.float64]]:
    """Return KL by truncation, total KL, squared error and squared norm of the gradient."""
    p_NC = np.exp(exact_NC)
    return {
        "kl_truncated": (p_NC * (exact_NC - cut_NC)).sum(axis=1),
        "kl_stored": (p_NC * (exact_NC - stored_NC)).sum(axis=1),
        "error2": ((np.exp(stored_NC) - p_NC) ** 2).sum(axis=1),
        "gradient2": ((np.exp(student_NC) - p_NC) ** 2).sum(axis=1),
    }
