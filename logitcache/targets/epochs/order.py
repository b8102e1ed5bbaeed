"""Order of images in an epoch: pure functions of (seed, epoch, rows, units).

An epoch shows one view, so that a view is read once, in whole shards. Blocks of units are permuted,
and then the rows inside each window of blocks, so an epoch is shuffled with one window of targets
in memory. Without targets, all rows are permuted. Permutations are computed, not stored: see
:mod:`logitcache.targets.epochs.permutation`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from logitcache.draws import Purpose, permutation
from logitcache.targets.epochs.permutation import AT_ONCE, Shuffle
from logitcache.targets.images.row_ids import SomeRows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from logitcache.targets.images.row_ids import RowIds

    PartnersOf = Callable[[NDArray[np.int64]], NDArray[np.int64]]

__all__ = ["Window", "epoch_rows", "epoch_windows", "view_of_epoch"]


@dataclass(frozen=True)
class Window:
    """Rows that are shuffled together.

    Attributes:
        units: Numbers of the units whose targets are needed, ascending.
        rows: The rows in the order in which they are shown, int64.
    """

    units: tuple[int, ...]
    rows: NDArray[np.int64]


def view_of_epoch(seed: int, epoch: int, views: int) -> int:
    """Return the index of the view that an epoch shows: each view once per cycle of epochs."""
    cycle, position = divmod(epoch, views)
    order = permutation(seed, views, draw=cycle, purpose=Purpose.VIEW_ORDER)
    return int(order[position])


def epoch_windows(
    numbers: RowIds,
    *,
    seed: int,
    epoch: int,
    unit_rows: int,
    window_units: int,
    block_units: int = 1,
    partners_of: PartnersOf | None = None,
    skip: int = 0,
) -> Iterator[Window]:
    """Yield the windows of one epoch; every row is in exactly one.

    Args:
        numbers: Numbers of the rows to show.
        seed: Random seed of the run.
        epoch: Index of the epoch, from 0.
        unit_rows: Number of rows per unit.
        window_units: Number of units per window.
        block_units: Number of units per block: units of one block stay together, since data that
            are stored in blocks are then read once.
        partners_of: Maps rows to the rows of the same unit that they are mixed with, -1 for rows
            that are not shown; the rows of a pair are shown one after the other, so that each image
            is decoded once. None if no images are mixed.
        skip: Number of rows at the beginning that are left out.
    """
    units = _Units(numbers, unit_rows)
    for stream, chosen in enumerate(units.windows(seed, epoch, window_units, block_units)):
        count = units.count(chosen)
        # without partners all rows are shown, so a window is skipped without reading anything
        if partners_of is None and skip >= count:
            skip -= count
            continue
        rows = _window_rows(numbers, units, chosen, partners_of)
        if skip >= len(rows):
            skip -= len(rows)
            continue
        shuffle = Shuffle(seed, len(rows), draw=epoch, purpose=Purpose.ROW_ORDER, stream=stream)
        shown = np.concatenate(list(_in_order(shuffle, SomeRows(rows), partners_of, 0)))
        yield Window(tuple(units.numbers(chosen).tolist()), shown[skip:])
        skip = 0


def epoch_rows(
    numbers: RowIds,
    *,
    seed: int,
    epoch: int,
    partners_of: PartnersOf | None = None,
    skip: int = 0,
) -> Iterator[NDArray[np.int64]]:
    """Yield the rows of one epoch without targets, in blocks.

    Args:
        numbers: Numbers of the rows to show.
        seed: Random seed of the run.
        epoch: Index of the epoch, from 0.
        partners_of: As in :func:`epoch_windows`.
        skip: Number of rows at the beginning that are left out.
    """
    shuffle = Shuffle(seed, len(numbers), draw=epoch, purpose=Purpose.ROW_ORDER)
    # with partners, later rows of a pair move forward: places do not say how many rows come before
    first = skip if partners_of is None else 0
    skip -= first
    for rows in _in_order(shuffle, numbers, partners_of, first):
        if skip < len(rows):
            yield rows[skip:]
        skip = max(0, skip - len(rows))


class _Units:
    """The units that contain some of the rows; ranks number these units without gaps."""

    def __init__(self, numbers: RowIds, unit_rows: int) -> None:
        self._numbers, self._rows = numbers, unit_rows
        self._filled: NDArray[np.int64] | None = None
        self._count = -(-len(numbers) // unit_rows)
        if isinstance(numbers, SomeRows):
            every = np.arange(int(numbers.rows[-1]) // unit_rows + 1)
            starts, stops = self.edges(every)
            self._filled = every[stops > starts]
            self._count = len(self._filled)

    def __len__(self) -> int:
        return self._count

    def numbers(self, chosen: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the numbers of units by their rank."""
        return chosen if self._filled is None else self._filled[chosen]

    def windows(
        self, seed: int, epoch: int, window_units: int, block_units: int
    ) -> Iterator[NDArray[np.int64]]:
        """Yield the ranks of the units of each window, ascending, in the order of the epoch."""
        waiting = np.empty(0, dtype=np.int64)
        for ranks in self._shuffled(seed, epoch, window_units, block_units):
            waiting = np.concatenate([waiting, ranks])
            while len(waiting) >= window_units:
                # ascending: a window finds the units of its rows by binary search
                yield np.sort(waiting[:window_units])
                waiting = waiting[window_units:]
        if len(waiting):
            yield np.sort(waiting)

    def _shuffled(
        self, seed: int, epoch: int, at_once: int, block_units: int
    ) -> Iterator[NDArray[np.int64]]:
        """Yield ranks in shuffled order: blocks are permuted, and the units inside each block."""
        purpose = Purpose.UNIT_ORDER
        if block_units == 1:
            order = Shuffle(seed, len(self), draw=epoch, purpose=purpose)
            for first in range(0, len(self), at_once):
                yield order.at(np.arange(first, min(first + at_once, len(self))))
            return
        last = int(self.numbers(np.array([len(self) - 1]))[0]) if len(self) else -1
        blocks = Shuffle(seed, last // block_units + 1, draw=epoch, purpose=purpose)
        for place in range(len(blocks)):
            block = int(blocks.at(np.array([place]))[0])
            start, stop = self._ranks_below(np.array([block, block + 1]) * block_units)
            # stream 0 is the order of the blocks
            inside = Shuffle(seed, stop - start, draw=epoch, purpose=purpose, stream=block + 1)
            yield start + inside.at(np.arange(stop - start))

    def _ranks_below(self, numbers: NDArray[np.int64]) -> list[int]:
        """Return the number of units with smaller numbers, for each number."""
        if self._filled is None:
            return [int(number) for number in np.minimum(numbers, len(self))]
        return [int(rank) for rank in np.searchsorted(self._filled, numbers)]

    def count(self, chosen: NDArray[np.int64]) -> int:
        """Return the number of rows in some units."""
        starts, stops = self.edges(self.numbers(chosen))
        return int((stops - starts).sum())

    def edges(self, units: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the positions of the first and after the last row of units, by number."""
        find = self._numbers.find
        return find(units * self._rows), find((units + 1) * self._rows)


def _window_rows(
    numbers: RowIds,
    units: _Units,
    chosen: NDArray[np.int64],
    partners_of: PartnersOf | None,
) -> NDArray[np.int64]:
    """Return the rows of a window that are shown, ascending."""
    spans = zip(*units.edges(units.numbers(chosen)), strict=True)
    rows = np.concatenate([numbers.take(np.arange(start, stop)) for start, stop in spans])
    return rows if partners_of is None else rows[partners_of(rows) >= 0]


def _in_order(
    shuffle: Shuffle, numbers: RowIds, partners_of: PartnersOf | None, first: int
) -> Iterator[NDArray[np.int64]]:
    """Yield rows in shuffled order from a place on; partners follow the first row of a pair."""
    for start in range(first, len(shuffle), AT_ONCE):
        places = np.arange(start, min(start + AT_ONCE, len(shuffle)))
        rows = numbers.take(shuffle.at(places))
        yield (
            rows
            if partners_of is None
            else _in_pairs(rows, places, partners_of(rows), shuffle, numbers)
        )


def _in_pairs(
    rows: NDArray[np.int64],
    places: NDArray[np.int64],
    partners: NDArray[np.int64],
    shuffle: Shuffle,
    numbers: RowIds,
) -> NDArray[np.int64]:
    """Drop rows whose partner comes earlier, and insert the partners of the others after them."""
    shown = partners >= 0
    rows, places, partners = rows[shown], places[shown], partners[shown]
    # equal places are rows that are not mixed: they are their own partners
    earlier = places <= shuffle.places(numbers.find(partners))
    pairs = np.stack([rows[earlier], partners[earlier]], axis=1)
    alone = pairs[:, 0] == pairs[:, 1]
    shown_once: NDArray[np.int64] = pairs[np.stack([np.ones_like(alone), ~alone], axis=1)]
    return shown_once
