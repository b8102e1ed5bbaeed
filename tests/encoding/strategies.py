"""Logits as teachers give them, and as they should not."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from hypothesis import strategies as st

from logitcache.encoding.logits import log_softmax

if TYPE_CHECKING:
    from numpy.typing import NDArray


@st.composite
def logits(draw: st.DrawFn, min_classes: int = 3, max_classes: int = 60) -> NDArray[np.float32]:
    """Draw (N, C) logits: sharp or flat, shifted, with ties as bfloat16 makes them."""
    rows = draw(st.integers(1, 6))
    classes = draw(st.integers(min_classes, max_classes))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    z = generator.normal(size=(rows, classes)) * draw(st.sampled_from([0.0, 0.5, 3.0, 30.0, 300.0]))
    z += draw(st.sampled_from([0.0, -1000.0, 500.0]))
    if draw(st.booleans()):
        z = np.round(z)
    return z.astype(np.float32)


def log_probs_of(z: NDArray[np.float32]) -> NDArray[np.float64]:
    return log_softmax(z)[0]


def log_error_bound(code: int) -> float:
    """Return the largest |log p_hat - log p| of a code in nats, before rows are scaled."""
    return -8.0 * math.log1p(-1.0 / (2.0 * code))
