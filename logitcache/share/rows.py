"""Rows of a cache that is made from others: for each of its rows, the row of each source.

Segments stay segments, and rows keep their order within them, so rows that are consecutive in a
source mostly stay so: a unit with the same rows as a unit of a source is copied as bytes.

Shapes: N rows of the new cache up to the end of its last block; M rows of a source.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from logitcache.cache.format.placement import units_of_segments

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from logitcache.share.source import SourceCache

__all__ = ["NO_ROW", "RowPlan"]

NO_ROW = -1
"""Stands for a row that a source does not have, or for padding."""


@dataclass(frozen=True)
class RowPlan:
    """Rows of the new cache.

    Attributes:
        unit_rows: U, the rows of a block.
        segments: (start, rows) of each segment.
        rows: For each source, the row that each row of the new cache is taken from: int64 (N,),
            :data:`NO_ROW` where the source does not have it.
    """

    unit_rows: int
    segments: tuple[tuple[int, int], ...]
    rows: tuple[NDArray[np.int64], ...]

    @classmethod
    def of_parts(cls, unit_rows: int, parts: Sequence[Sequence[NDArray[np.int64]]]) -> RowPlan:
        """Return the plan of segments, one after the other; empty ones are left out.

        Args:
            unit_rows: U.
            parts: For each segment, the rows of each source, int64 (rows of the segment,).
        """
        segments, columns, end = [], [], 0
        for part in parts:
            count = len(part[0])
            if not count:
                continue
            segments.append((end, count))
            padded = -(-count // unit_rows) * unit_rows
            columns.append([_padded(rows, padded) for rows in part])
            end += padded
        by_source = zip(*columns, strict=True)
        return cls(unit_rows, tuple(segments), tuple(np.concatenate(c) for c in by_source))

    @property
    def images(self) -> int:
        """Number of rows that are images."""
        return sum(count for _, count in self.segments)

    @property
    def image_rows(self) -> NDArray[np.int64]:
        """Rows that are images, ascending."""
        parts = [np.arange(start, start + count) for start, count in self.segments]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def units(self, unit_rows: int) -> list[int]:
        """Return the units of this size that cover all blocks of the segments."""
        return units_of_segments(self.segments, self.unit_rows, unit_rows)

    def taken_from(self, number: int, start: int, stop: int) -> NDArray[np.int64]:
        """Return the rows of a source that rows [start, stop) are taken from."""
        return self.rows[number][start:stop]

    def whole_unit(self, number: int, source: SourceCache, unit: int, unit_rows: int) -> int | None:
        """Return the unit of a source with the same rows in the same order; None without one.

        Args:
            number: Number of the source.
            source: The source.
            unit: Number of the unit of the new cache.
            unit_rows: Rows of a unit, in both.
        """
        start, stop = unit * unit_rows, (unit + 1) * unit_rows
        wanted = self.taken_from(number, start, stop)
        has_image = np.any([rows[start:stop] != NO_ROW for rows in self.rows], axis=0)
        if not has_image.any():
            return _padding_unit(source, unit_rows, unit)
        if (has_image & (wanted == NO_ROW)).any():  # some rows are those of other sources
            return None
        first = int(wanted[0])
        if first % unit_rows:
            return None
        theirs = np.arange(first, first + unit_rows)
        same = np.where(source.has_image[first : first + unit_rows], theirs, NO_ROW)
        return first // unit_rows if np.array_equal(wanted, same) else None

    def mapped(self, number: int, rows_m: Sequence[int]) -> Mapping[int, int]:
        """Return the rows of the new cache by some rows of a source; without those not taken."""
        wanted = np.asarray(rows_m, np.int64)
        here = np.flatnonzero(np.isin(self.rows[number], wanted))
        return dict(zip(self.rows[number][here].tolist(), here.tolist(), strict=True))

    def is_complete(self, number: int, source: SourceCache) -> bool:
        """Return whether all images of a source are taken, and no others."""
        return int((self.rows[number] >= 0).sum()) == int(source.has_image.sum()) == self.images


def _padded(rows: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    return np.concatenate([rows, np.full(length - len(rows), NO_ROW, np.int64)])


def _padding_unit(source: SourceCache, unit_rows: int, unit: int) -> int | None:
    """Return a unit of a source that is padding alone, the one of this number if it is.

    None if there is none.
    """
    units = units_of_segments(source.segments, source.cache.unit_rows, unit_rows)
    own_first = sorted(units, key=lambda number: number != unit)
    empty = (
        n for n in own_first if not source.has_image[n * unit_rows : (n + 1) * unit_rows].any()
    )
    return next(empty, None)
