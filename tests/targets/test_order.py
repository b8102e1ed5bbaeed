from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from logitcache.targets.order import epoch_windows, view_of_epoch


@given(
    chosen=st.sets(st.integers(0, 200), max_size=80),
    unit=st.sampled_from([1, 16, 64]),
    window=st.integers(1, 5),
    epoch=st.integers(0, 3),
)
def test_every_row_is_shown_once_with_its_unit(
    chosen: set[int], unit: int, window: int, epoch: int
) -> None:
    rows = np.array(sorted(chosen), dtype=np.int64)
    shown: list[int] = []
    for found in epoch_windows(rows, seed=1, epoch=epoch, unit_rows=unit, window_units=window):
        assert len(found.units) <= window
        assert list(found.units) == sorted({int(row) // unit for row in found.rows})
        shown += found.rows.tolist()
    assert sorted(shown) == sorted(chosen)


def order(**changes: int) -> tuple[int, ...]:
    settings: dict[str, Any] = {
        "seed": 1,
        "epoch": 0,
        "unit_rows": 16,
        "window_units": 2,
        **changes,
    }
    rows = np.arange(100)
    return tuple(r for w in epoch_windows(rows, **settings) for r in w.rows.tolist())


def test_it_depends_on_everything_it_names_and_nothing_else() -> None:
    assert order() == order()
    orders = {order(), order(seed=2), order(epoch=1), order(window_units=3), order(unit_rows=32)}
    assert len(orders) == 5


def test_rows_are_well_mixed_over_epochs() -> None:
    first = Counter(order(epoch=epoch)[0] // 16 for epoch in range(200))
    assert len(first) == 7
    everywhere = np.array([order(epoch=e, window_units=7) for e in range(200)])
    assert abs(everywhere.mean(axis=0) - 49.5).max() < 10


@pytest.mark.parametrize("views", [1, 3, 8])
def test_a_cycle_walks_every_view_once(views: int) -> None:
    for cycle in range(4):
        epochs = range(cycle * views, (cycle + 1) * views)
        assert sorted(view_of_epoch(5, epoch, views) for epoch in epochs) == list(range(views))


def test_cycles_differ() -> None:
    cycles = {tuple(view_of_epoch(5, 8 * c + i, 8) for i in range(8)) for c in range(6)}
    assert len(cycles) > 3
