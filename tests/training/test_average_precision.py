"""Mean average precision, compared with scikit-learn."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from logitcache.training.evaluation.average_precision import (
    average_precisions,
    mean_average_precision,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

metrics = pytest.importorskip("sklearn.metrics")

SHAPES = st.tuples(st.integers(1, 12), st.integers(1, 4))


@given(SHAPES.flatmap(lambda shape: st.tuples(
    # few different values, so that there are ties
    arrays.arrays(np.float32, shape, elements=st.integers(-3, 3).map(float)),
    arrays.arrays(np.bool_, shape),
)))  # fmt: skip
def test_it_is_that_of_scikit_learn(given: tuple[NDArray[np.float32], NDArray[np.bool_]]) -> None:
    scores, present = given
    found = average_precisions(scores, present)
    for column in range(scores.shape[1]):
        if not present[:, column].any():
            assert np.isnan(found[column])
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = metrics.average_precision_score(present[:, column], scores[:, column])
        assert found[column] == pytest.approx(expected, abs=1e-12)
    mean = mean_average_precision(scores, present)
    kept = found[~np.isnan(found)]
    assert mean == pytest.approx(kept.mean()) if len(kept) else np.isnan(mean)


def test_a_worked_example() -> None:
    """Hits at ranks 1 and 3: (1 / 1 + 2 / 3) / 2."""
    scores = np.array([[0.9], [0.8], [0.7], [0.1]])
    present = np.array([[True], [False], [True], [False]])
    assert average_precisions(scores, present)[0] == pytest.approx(5 / 6)
    assert np.isnan(mean_average_precision(scores, ~np.ones_like(present)))
