"""In which order images are shown: pure functions of (seed, epoch, rows, units).

An epoch walks one view, so that a view is read once, in whole shards. Blocks of units are permuted,
and the rows inside each window of blocks, so an epoch is shuffled without holding more than a
window of targets, and without a permutation of all rows in memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from logitcache.draws import Purpose, permutation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

__all__ = ["Window", "epoch_windows", "skip_rows", "view_of_epoch"]


@dataclass(frozen=True)
class Window:
    """Rows that are shown together.

    Attributes:
        units: Units whose targets are needed, ascending.
        rows: The rows in the order in which they are shown, int64.
    """

    units: tuple[int, ...]
    rows: NDArray[np.int64]


def view_of_epoch(seed: int, epoch: int, views: int) -> int:
    """Return which of ``views`` views an epoch walks: all of them once in every cycle."""
    cycle, position = divmod(epoch, views)
    order = permutation(seed, views, draw=cycle, purpose=Purpose.VIEW_ORDER)
    return int(order[position])


def epoch_windows(
    rows_N: NDArray[np.int64],
    *,
    seed: int,
    epoch: int,
    unit_rows: int,
    window_units: int,
    partners_N: NDArray[np.int64] | None = None,
) -> Iterator[Window]:
    """Yield the windows of one epoch; every row is in exactly one.

    Args:
        rows_N: The rows to show, ascending.
        seed: Of the run.
        epoch: Counted from 0.
        unit_rows: Rows of a unit.
        window_units: Units of a window.
        partners_N: The row of the same unit that each is mixed with; a pair is then shown one
            after the other, so that each image is decoded once. None where nothing is mixed.
    """
    edges = np.flatnonzero(np.diff(rows_N // unit_rows)) + 1
    starts = np.concatenate([[0], edges]) if len(rows_N) else np.empty(0, dtype=np.int64)
    stops = np.append(edges, len(rows_N))
    order = permutation(seed, len(starts), draw=epoch, purpose=Purpose.UNIT_ORDER)
    for index in range(0, len(order), window_units):
        chosen = np.sort(order[index : index + window_units])
        positions = np.concatenate([np.arange(starts[i], stops[i]) for i in chosen])
        rows = rows_N[positions]
        shuffled = permutation(
            seed, len(rows), draw=epoch, purpose=Purpose.ROW_ORDER, stream=index // window_units
        )
        if partners_N is not None:
            shuffled = _in_pairs(shuffled, np.searchsorted(rows, partners_N[positions]))
        units = tuple(int(rows_N[starts[i]] // unit_rows) for i in chosen)
        yield Window(units, rows[shuffled])


def skip_rows(windows: Iterator[Window], skip: int) -> Iterator[Window]:
    """Leave out the first rows; windows that are left out whole are never read."""
    for window in windows:
        if skip < len(window.rows):
            yield Window(window.units, window.rows[skip:])
        skip = max(0, skip - len(window.rows))


def _in_pairs(shuffled_N: NDArray[np.int64], partners_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """Move the later one of each pair behind the earlier one."""
    rank = np.empty_like(shuffled_N)
    rank[shuffled_N] = np.arange(len(shuffled_N))
    return np.lexsort((rank, np.minimum(rank, rank[partners_N])))
