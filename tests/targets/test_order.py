from __future__ import annotations

import itertools
import tracemalloc
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from logitcache.draws import Purpose
from logitcache.targets.epochs.order import epoch_rows, epoch_windows, view_of_epoch
from logitcache.targets.epochs.permutation import AT_ONCE, Shuffle
from logitcache.targets.images.row_ids import AllRows, SomeRows, row_ids_of


@given(
    chosen=st.sets(st.integers(0, 200), max_size=80),
    unit=st.sampled_from([1, 16, 64]),
    window=st.integers(1, 5),
    epoch=st.integers(0, 3),
)
def test_every_row_is_shown_once_with_its_unit(
    chosen: set[int], unit: int, window: int, epoch: int
) -> None:
    rows = row_ids_of(np.array(sorted(chosen), dtype=np.int32))
    shown: list[int] = []
    for found in epoch_windows(rows, seed=1, epoch=epoch, unit_rows=unit, window_units=window):
        assert len(found.units) <= window
        assert list(found.units) == sorted({int(row) // unit for row in found.rows})
        shown += found.rows.tolist()
    assert sorted(shown) == sorted(chosen)


@given(
    chosen=st.sets(st.integers(0, 200), max_size=80),
    window=st.integers(1, 5),
    block=st.sampled_from([2, 4, 8]),
    epoch=st.integers(0, 3),
)
def test_units_of_a_block_follow_each_other(
    chosen: set[int], window: int, block: int, epoch: int
) -> None:
    rows = row_ids_of(np.array(sorted(chosen), dtype=np.int32))
    windows = list(
        epoch_windows(
            rows, seed=1, epoch=epoch, unit_rows=4, window_units=window, block_units=block
        )
    )
    assert sorted(row for w in windows for row in w.rows.tolist()) == sorted(chosen)
    assert all(len(found.units) == window for found in windows[:-1])
    blocks = [sorted({unit // block for unit in found.units}) for found in windows]
    entered = list(itertools.chain.from_iterable(blocks))
    changes = len([1 for a, b in itertools.pairwise(entered) if a != b])
    if window == 1:
        assert changes == max(0, len(set(entered)) - 1)


def test_blocks_and_their_units_are_shuffled() -> None:
    def units(epoch: int) -> list[int]:
        settings: dict[str, Any] = {"unit_rows": 4, "window_units": 1, "block_units": 8}
        windows = epoch_windows(AllRows(4 * 64), seed=1, epoch=epoch, **settings)
        return [window.units[0] for window in windows]

    first, second = units(0), units(1)
    assert [unit // 8 for unit in first[::8]] != sorted({unit // 8 for unit in first})
    assert first[:8] != sorted(first[:8])
    assert first != second
    assert sorted(first) == sorted(second) == list(range(64))


if TYPE_CHECKING:
    from numpy.typing import NDArray

MANY = 10**9
GOLDEN = [37252, 745260, 758086, 929112, 208057, 449534]
GOLDEN_FEW = [2, 7, 0, 5, 4, 3, 6, 1]


def order(**changes: int) -> tuple[int, ...]:
    settings: dict[str, Any] = {
        "seed": 1,
        "epoch": 0,
        "unit_rows": 16,
        "window_units": 2,
        **changes,
    }
    return tuple(r for w in epoch_windows(AllRows(100), **settings) for r in w.rows.tolist())


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


def test_a_skipped_epoch_is_the_rest_of_it() -> None:
    rows = row_ids_of(np.flatnonzero(np.arange(3000) % 7).astype(np.int32))
    settings: dict[str, Any] = {"seed": 3, "epoch": 2}
    windows = {**settings, "unit_rows": 64, "window_units": 3}
    whole = np.concatenate([w.rows for w in epoch_windows(rows, **windows)])
    streamed = np.concatenate(list(epoch_rows(rows, **settings)))
    for skip in (1, 163, 164, 1000, 2570, 2571, 9999):
        left = [w.rows for w in epoch_windows(rows, **windows, skip=skip)]
        assert np.concatenate([*left, np.empty(0)]).tolist() == whole[skip:].tolist()
        left = list(epoch_rows(rows, **settings, skip=skip))
        assert np.concatenate([*left, np.empty(0)]).tolist() == streamed[skip:].tolist()


def partners_in(unit: int, lost: int) -> Any:
    """Pair neighbors of a unit; a row is its own partner at an odd end, and some are lost."""

    def partners_of(rows: NDArray[np.int64]) -> NDArray[np.int64]:
        found = np.where(rows % unit == unit - 1, rows, rows + 1 - 2 * (rows % unit % 2))
        return np.where(rows // 10 == lost, -1, found)

    return partners_of


@pytest.mark.parametrize("unit", [15, 45])
@pytest.mark.parametrize("streamed", [False, True])
def test_pairs_come_together_and_the_lost_ones_not_at_all(unit: int, streamed: bool) -> None:
    partners_of, rows = partners_in(unit, lost=3), AllRows(450)
    settings: dict[str, Any] = {"seed": 1, "epoch": 4, "partners_of": partners_of}
    if streamed:
        shown = np.concatenate(list(epoch_rows(rows, **settings)))
    else:
        found = epoch_windows(rows, **settings, unit_rows=unit, window_units=2)
        shown = np.concatenate([w.rows for w in found])
    assert sorted(shown) == [row for row in range(450) if row // 10 != 3]
    place = {int(row): index for index, row in enumerate(shown)}
    for row in place:
        assert abs(place[int(partners_of(np.array([row]))[0])] - place[row]) <= 1


@pytest.mark.requirement("V3.4")
@given(size=st.integers(AT_ONCE + 1, 4 * AT_ONCE), seed=st.integers(0, 2**64 - 1))
def test_a_shuffle_is_a_permutation_and_knows_its_inverse(size: int, seed: int) -> None:
    shuffle = Shuffle(seed, size, draw=1, purpose=Purpose.ROW_ORDER)
    places = np.arange(size)
    items = shuffle.at(places)
    assert np.array_equal(np.sort(items), places)
    assert np.array_equal(shuffle.places(items[:99]), places[:99])
    assert np.array_equal(shuffle.at(places[5000:5010]), items[5000:5010])


def test_a_shuffle_shuffles() -> None:
    """As random permutations do: fixed points, runs, and where the first items go."""
    size = AT_ONCE + 1234
    firsts = []
    for draw in range(40):
        items = Shuffle(7, size, draw=draw, purpose=Purpose.ROW_ORDER).at(np.arange(size))
        assert (items == np.arange(size)).sum() < 12, "one is expected"
        assert abs((np.diff(items) > 0).mean() - 0.5) < 0.02
        halves = np.corrcoef(np.arange(size), items)[0, 1]
        assert abs(halves) < 6 / np.sqrt(size)
        firsts.append(items[:64] / size)
    counts, _ = np.histogram(np.concatenate(firsts), bins=16, range=(0, 1))
    expected = 40 * 64 / 16
    assert ((counts - expected) ** 2 / expected).sum() < 50, "chi square with 15 degrees"


@pytest.mark.requirement("V3.4")
def test_a_shuffle_is_what_it_was() -> None:
    """A resumed run of an older version must see the same order."""
    shuffle = Shuffle(1, 10**6, draw=2, purpose=Purpose.ROW_ORDER, stream=3)
    assert shuffle.at(np.arange(6)).tolist() == GOLDEN
    few = Shuffle(1, 8, draw=2, purpose=Purpose.ROW_ORDER, stream=3)
    assert few.at(np.arange(8)).tolist() == GOLDEN_FEW
    assert few.places(few.at(np.arange(8))).tolist() == list(range(8))


@pytest.mark.parametrize("skip", [0, MANY // 2 + 12345, MANY - 10])
def test_a_billion_rows_are_ordered_in_little_memory(skip: int) -> None:
    """From the start, the middle and the end, with and without targets."""
    windows: dict[str, Any] = {"unit_rows": 65536, "window_units": 4}
    tracemalloc.start()
    found = list(itertools.islice(epoch_rows(AllRows(MANY), seed=1, epoch=5, skip=skip), 2))
    shown = epoch_windows(AllRows(MANY), seed=1, epoch=5, **windows, skip=skip)
    first = next(iter(shown)).rows
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64e6
    for rows in (np.concatenate(found), first):
        assert len(np.unique(rows)) == len(rows)
        assert 0 <= rows.min() <= rows.max() < MANY
    assert len(first) == 10 if skip == MANY - 10 else len(first) > 1000
    spread = np.concatenate(found)
    assert skip == MANY - 10 or abs(spread.mean() / MANY - 0.5) < 0.01


def test_rows_with_gaps_take_an_array_and_others_none() -> None:
    assert row_ids_of(np.arange(5)) == AllRows(5)
    gaps = row_ids_of(np.array([0, 2, 3], dtype=np.int32))
    assert isinstance(gaps, SomeRows)
    assert gaps.find(np.array([0, 1, 3, 9])).tolist() == [0, 1, 2, 3]
    assert gaps.keep(np.array([True, False, True])).take(np.arange(2)).tolist() == [0, 3]
    assert len(gaps.keep(np.zeros(3, dtype=np.bool_))) == 0
    assert AllRows(4).keep(np.array([True, True, False, False])) == AllRows(2)
