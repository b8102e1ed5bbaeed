"""Decoded teacher outputs: distributions over all classes, top classes, entropy and tail mass.

Rows that were not computed (unreadable images, rows after the last image) have the fill values of
their arrays, which decode to NaN; damaged rows may do so as well. For every encoding:

* ``computed`` is False where a row contains NaN or +inf anywhere.
* Every number that is derived from such a row is NaN; its top class is :data:`NO_CLASS`.

So the top class of such a row never equals a label, or the top class of another row, by chance.

Absent classes of sparse targets share the tail mass evenly. They are never the top class, since
only their average is known.

Shapes: N rows, C classes, K stored classes; b = 1 / T.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import numpy as np

from logitcache.encoding.tail import quadratic

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

__all__ = [
    "NO_CLASS",
    "Decoded",
    "DecodedDense",
    "DecodedSigmoid",
    "DecodedSparse",
    "at_temperature",
    "presence_and_absence",
    "spread_tail",
]

NO_CLASS = -1
"""The top class of a row that was not computed."""

_ROWS_AT_ONCE = 64  # float64 (rows, C) temporaries that stay in fast memory


@dataclass(frozen=True)
class Decoded(ABC):
    """Decoded rows of either encoding.

    Attributes:
        log_probs: Log-probabilities at T = 1, float32: (N, C), or (N, K) for sparse targets.
        num_classes: C.
    """

    log_probs: NDArray[np.float32]
    num_classes: int

    def __len__(self) -> int:
        return len(self.log_probs)

    @property
    def computed(self) -> NDArray[np.bool_]:
        """Which rows contain a distribution, bool (N,)."""
        return _all_below_inf(self.log_probs)

    @abstractmethod
    def take(self, rows: slice) -> Self:
        """Return some of the rows."""

    def parts(self) -> Iterator[tuple[slice, Self]]:
        """Yield all rows, a few at a time, with their slices."""
        for start in range(0, max(len(self), 1), _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            yield part, self.take(part)

    @abstractmethod
    def dense_log_probs(self, b: float = 1.0) -> NDArray[np.float64]:
        """Return normalized log-probabilities of all classes at temperature 1 / b: (N, C)."""

    def outcome_log_probs(self, b: float = 1.0) -> NDArray[np.float64]:
        """Return log-probabilities of all outcomes at temperature 1 / b; those of the classes.

        The KL divergence of two rows is a sum over the outcomes.
        """
        return self.dense_log_probs(b)

    def probs(self) -> NDArray[np.float32]:
        """Return probabilities of all classes at T = 1: float32 (N, C)."""
        probs_NC = np.empty((len(self), self.num_classes), dtype=np.float32)
        for rows, part in self.parts():
            probs_NC[rows] = np.exp(part.dense_log_probs())
        return probs_NC

    def top_class(self) -> NDArray[np.int64]:
        """Return the class of the highest probability, the lowest id of equal ones: (N,)."""
        column_N = np.where(np.isnan(self.log_probs), -np.inf, self.log_probs).argmax(axis=1)
        return np.where(self.computed, self._class_ids(column_N), NO_CLASS)

    def entropy(self) -> NDArray[np.float64]:
        """Return the entropy at T = 1 in nats: (N,)."""
        used = self.log_probs > -np.inf
        log_probs = np.where(used, self.log_probs, 0.0).astype(np.float64)
        entropy_N = -(np.where(used, np.exp(log_probs), 0.0) * log_probs).sum(axis=1)
        return np.where(self.computed, entropy_N + self._tail_entropy(), np.nan)

    @abstractmethod
    def tail_mass(self) -> NDArray[np.float64]:
        """Return the probability of all absent classes together at T = 1: (N,)."""

    @abstractmethod
    def _class_ids(self, columns_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the class of one column of each row of ``log_probs``."""

    def _tail_entropy(self) -> NDArray[np.float64]:
        """Return the entropy of the absent classes of each row."""
        return np.zeros(len(self))


@dataclass(frozen=True)
class DecodedDense(Decoded):
    """Dense targets: the probabilities of a row sum to one over the C columns."""

    def take(self, rows: slice) -> DecodedDense:
        """Return some of the rows."""
        return replace(self, log_probs=self.log_probs[rows])

    def dense_log_probs(self, b: float = 1.0) -> NDArray[np.float64]:
        """Return normalized log-probabilities of all classes at temperature 1 / b: (N, C)."""
        log_probs_NC = np.where(self.computed[:, None], self.log_probs, np.nan)
        return at_temperature(log_probs_NC.astype(np.float64), b)

    def tail_mass(self) -> NDArray[np.float64]:
        """Return zeros, NaN for rows that were not computed: (N,)."""
        return np.where(self.computed, 0.0, np.nan)

    def _class_ids(self, columns_N: NDArray[np.int64]) -> NDArray[np.int64]:
        return columns_N


@dataclass(frozen=True)
class DecodedSigmoid(Decoded):
    """Log-odds of each class; the classes are independent, so probabilities have no sum.

    Attributes:
        log_probs: Log-probabilities of the presence of each class at T = 1, float32 (N, C).
        logits: Log-odds, float32 (N, C).
    """

    logits: NDArray[np.float32]

    @classmethod
    def of(cls, logits_NC: NDArray[np.float32]) -> DecodedSigmoid:
        """Return rows from their logits."""
        log_probs_NC = _log_sigmoid(logits_NC.astype(np.float64))
        return cls(log_probs_NC.astype(np.float32), logits_NC.shape[1], logits_NC)

    @property
    def computed(self) -> NDArray[np.bool_]:
        """Which rows contain logits, bool (N,)."""
        return _all_below_inf(self.logits)

    def take(self, rows: slice) -> DecodedSigmoid:
        """Return some of the rows."""
        return replace(self, log_probs=self.log_probs[rows], logits=self.logits[rows])

    def dense_log_probs(self, b: float = 1.0) -> NDArray[np.float64]:
        """Return log-probabilities of the presence of each class at temperature 1 / b: (N, C)."""
        return self.outcome_log_probs(b)[:, : self.num_classes]

    def outcome_log_probs(self, b: float = 1.0) -> NDArray[np.float64]:
        """Return log-probabilities of the presence, then of the absence of each class: (N, 2C)."""
        logits_NC = np.where(self.computed[:, None], self.logits, np.nan)
        return presence_and_absence(logits_NC.astype(np.float64), b)

    def entropy(self) -> NDArray[np.float64]:
        """Return the sum of the entropies of all classes at T = 1 in nats: (N,)."""
        log_probs = self.outcome_log_probs()
        entropy_N: NDArray[np.float64] = -(np.exp(log_probs) * log_probs).sum(axis=1)
        return entropy_N

    def tail_mass(self) -> NDArray[np.float64]:
        """Return zeros, NaN for rows that were not computed: (N,)."""
        return np.where(self.computed, 0.0, np.nan)

    def _class_ids(self, columns_N: NDArray[np.int64]) -> NDArray[np.int64]:
        return columns_N


@dataclass(frozen=True)
class DecodedSparse(Decoded):
    """Sparse targets: K classes of each row and the mass of all others.

    Attributes:
        log_probs: Log-probabilities of the present classes, float32 (N, K), -inf in unused entries;
            the probabilities and the tail mass sum to one.
        class_ids: Present classes ascending, int64 (N, K); unused entries are last.
        tail: log M(1) and log M(1/4) of the absent classes, float32 (N, 2).
    """

    class_ids: NDArray[np.int64]
    tail: NDArray[np.float32]

    @property
    def computed(self) -> NDArray[np.bool_]:
        """Which rows contain a distribution, bool (N,)."""
        return _all_below_inf(self.log_probs) & _all_below_inf(self.tail)

    def take(self, rows: slice) -> DecodedSparse:
        """Return some of the rows."""
        return replace(
            self,
            log_probs=self.log_probs[rows],
            class_ids=self.class_ids[rows],
            tail=self.tail[rows],
        )

    def dense_log_probs(self, b: float = 1.0) -> NDArray[np.float64]:
        """Return normalized log-probabilities of all classes at temperature 1 / b: (N, C)."""
        log_probs_NC = np.full((len(self), self.num_classes), -np.inf)
        computed_N1 = self.computed[:, None]
        row, entry = np.nonzero((self.log_probs > -np.inf) & computed_N1)
        log_probs_NC[row, self.class_ids[row, entry]] = self.log_probs[row, entry]
        tail_N2 = np.where(computed_N1, self.tail, np.nan).astype(np.float64)
        return spread_tail(log_probs_NC, log_probs_NC > -np.inf, tail_N2, b)

    def tail_mass(self) -> NDArray[np.float64]:
        """Return the probability of all absent classes together at T = 1: (N,)."""
        mass_N = np.exp(self.tail[:, 0].astype(np.float64))
        return np.where(self.computed, mass_N, np.nan)

    def _class_ids(self, columns_N: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.take_along_axis(self.class_ids, columns_N[:, None], axis=1)[:, 0]

    def _tail_entropy(self) -> NDArray[np.float64]:
        """Return the entropy of the absent classes where they share the tail mass evenly."""
        mass_N = self.tail_mass()
        absent_N = self.num_classes - (self.log_probs > -np.inf).sum(axis=1)
        shared = (mass_N > 0) & (absent_N > 0)
        log_each_N = np.log(np.where(shared, mass_N / np.maximum(absent_N, 1), 1.0))
        return -mass_N * log_each_N


def at_temperature(log_probs_NC: NDArray[np.float64], b: float) -> NDArray[np.float64]:
    """Return the distribution at temperature 1 / b, as log-probabilities."""
    scaled = b * log_probs_NC
    peak = scaled.max(axis=1, keepdims=True)
    normalized: NDArray[np.float64] = (
        scaled - peak - np.log(np.exp(scaled - peak).sum(axis=1, keepdims=True))
    )
    return normalized


def presence_and_absence(logits_NC: NDArray[np.float64], b: float) -> NDArray[np.float64]:
    """Return log-probabilities of the presence and then of the absence of each class: (N, 2C).

    Args:
        logits_NC: Log-odds.
        b: 1 / T.
    """
    scaled = b * logits_NC
    return _log_sigmoid(np.concatenate([scaled, -scaled], axis=1))


def spread_tail(
    log_probs_NC: NDArray[np.float64],
    present_NC: NDArray[np.bool_],
    tail_N2: NDArray[np.float64],
    b: float,
) -> NDArray[np.float64]:
    """Spread the tail mass evenly over the absent classes at temperature 1 / b; normalize.

    Args:
        log_probs_NC: Log-probabilities at T = 1; arbitrary for absent classes.
        present_NC: Which classes are present.
        tail_N2: log M(1) and log M(1/4) of the absent classes.
        b: 1 / T.
    """
    absent_N = np.maximum((~present_NC).sum(axis=1), 1)
    through_0, through_quarter, through_1 = quadratic(b)
    log_mass_N = (
        through_0 * np.log(absent_N) + through_quarter * tail_N2[:, 1] + through_1 * tail_N2[:, 0]
    )
    each_N1 = (log_mass_N - np.log(absent_N))[:, None]
    scaled_NC = np.where(present_NC, b * np.where(present_NC, log_probs_NC, 0.0), each_N1)
    return at_temperature(scaled_NC, 1.0)


def _log_sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    # unlike np.logaddexp, without a warning for NaN
    found: NDArray[np.float64] = np.minimum(logits, 0.0) - np.log1p(np.exp(-np.abs(logits)))
    return found


def _all_below_inf(values: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Return which rows contain neither NaN nor +inf; -inf is a probability of zero."""
    below: NDArray[np.bool_] = np.all(values < np.inf, axis=1)
    return below
