"""Axes, intervals and thinned curves."""

from __future__ import annotations

import math
from itertools import pairwise
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logitcache.report.page.axis import Axis
from logitcache.report.page.charts import Series
from logitcache.report.page.intervals import interval_of_mean, interval_of_share

NUMBERS = st.lists(st.floats(-1e9, 1e9, allow_subnormal=False), min_size=1, max_size=20)


@given(NUMBERS)
def test_ticks_are_round_ascending_and_on_the_axis(values: list[float]) -> None:
    axis = Axis.around("x", values)
    places = [place for place, _ in axis.ticks()]
    assert 2 <= len(places) <= 8
    assert all(one < other for one, other in pairwise(places))
    assert 0 <= places[0] < places[-1] <= 1
    assert all(0 <= axis.place(value) <= 1 for value in values)


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=20))
def test_a_logarithmic_axis_has_equal_distances_for_equal_ratios(values: list[float]) -> None:
    axis = Axis.around("x", values, is_log=True)
    places = [axis.place(axis.low * 2**k) for k in range(3) if axis.low * 2**k <= axis.high]
    if len(places) == 3:
        assert places[2] - places[1] == pytest.approx(places[1] - places[0])
    assert all(0 <= place <= 1 for place, _ in axis.ticks())


def test_intervals_are_those_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    for count in (2, 3, 7, 21, 60):
        values = [0.5 + 0.1 * math.sin(index) for index in range(count)]
        spread = stats.sem(values)
        expected = stats.t.interval(0.95, count - 1, loc=mean(values), scale=spread)
        # beyond the table of quantiles, the normal distribution is used: 2 % smaller
        tolerance = (1e-4 if count < 22 else 0.05) * spread
        assert interval_of_mean(values) == pytest.approx(expected, abs=tolerance)
    for right, count in ((0, 10), (7, 10), (450, 450), (123, 456)):
        found = stats.binomtest(right, count).proportion_ci(method="wilson")
        assert interval_of_share(right / count, count) == pytest.approx(tuple(found), abs=1e-12)


def test_a_long_curve_is_thinned_and_keeps_its_end() -> None:
    series = Series("s", [(float(x), 0.0) for x in range(1001)])
    assert len(series.thinned) <= 200
    assert series.thinned[-1] == (1000.0, 0.0)
    assert Series("s", series.points[:150]).thinned == series.points[:150]
