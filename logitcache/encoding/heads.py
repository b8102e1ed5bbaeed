"""Heads of teachers: what their logits mean, and so how they are normalized and compared.

======= ================================================= ==================================
head    values that are stored, (N, C)                    outcomes whose probabilities sum up
======= ================================================= ==================================
softmax log-probabilities of the classes                  the C classes
sigmoid logits: log-odds of each class                    presence and absence of each class
======= ================================================= ==================================

Shapes: N rows, C classes, b = 1 / T.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from logitcache.encoding.decoded import at_temperature, presence_and_absence
from logitcache.encoding.logits import log_softmax

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

__all__ = ["HEADS", "Head"]


@dataclass(frozen=True)
class Head:
    """The functions in which heads differ.

    Attributes:
        normalize: Returns the values of raw logits, float64 (N, C), and their logsumexp, (N,);
            zeros where it has no meaning.
        outcomes: Returns log-probabilities of all outcomes of values at temperature 1 / b; the KL
            divergence is a sum over outcomes.
        max_entropy: Returns the largest entropy of C classes, in nats.
        sums_to_one: Whether the probabilities of the classes sum to one.
    """

    normalize: Callable[[NDArray[np.float32]], tuple[NDArray[np.float64], NDArray[np.float64]]]
    outcomes: Callable[[NDArray[np.float64], float], NDArray[np.float64]]
    max_entropy: Callable[[int], float]
    sums_to_one: bool


def _log_odds(
    logits_NC: NDArray[np.float32],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return logits_NC.astype(np.float64), np.zeros(len(logits_NC))


HEADS: dict[str, Head] = {
    "softmax": Head(log_softmax, at_temperature, math.log, sums_to_one=True),
    "sigmoid": Head(
        _log_odds,
        presence_and_absence,
        lambda classes: classes * math.log(2),
        sums_to_one=False,
    ),
}
"""Heads by name, as the attributes of a group have it."""
