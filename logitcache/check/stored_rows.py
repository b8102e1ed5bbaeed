"""Rows of views as a cache stores them, read by groups and units.

Shapes: N rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from logitcache.encoding.arrays import filled

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from logitcache.cache.format.groups import RowGroup
    from logitcache.cache.read.reader import Cache
    from logitcache.check.recompute import Run
    from logitcache.encoding.arrays import Encoded

__all__ = ["StoredReader", "StoredRows"]


@dataclass(frozen=True)
class StoredRows:
    """Rows of views as they are stored.

    Attributes:
        views: Ids of the views, object (N,).
        rows: Row numbers, int64 (N,).
        arrays: Encoded rows by name of the group, N each; fill values where a group lacks a view.
        has: Which of the rows a group has, bool (N,) by name of the group.
    """

    views: NDArray[np.object_]
    rows: NDArray[np.int64]
    arrays: dict[str, Encoded]
    has: dict[str, NDArray[np.bool_]]

    def take(self, chosen: NDArray[np.int64]) -> StoredRows:
        """Return some of the rows."""
        arrays = {
            name: {array: content[chosen] for array, content in encoded.items()}
            for name, encoded in self.arrays.items()
        }
        has = {name: rows[chosen] for name, rows in self.has.items()}
        return StoredRows(self.views[chosen], self.rows[chosen], arrays, has)


class StoredReader:
    """Reader of stored rows, which keeps the last unit of each group in memory.

    Args:
        cache: The cache.
        groups: Groups by name.
    """

    def __init__(self, cache: Cache, groups: Mapping[str, RowGroup]) -> None:
        self._cache, self._groups = cache, groups
        self._held: dict[str, tuple[str, int, Encoded]] = {}

    def read(self, runs: Sequence[Run]) -> StoredRows:
        """Read the rows of a chunk."""
        lengths = [len(rows) for _, rows in runs]
        count = sum(lengths)
        stored = StoredRows(
            views=np.repeat(np.array([view_id for view_id, _ in runs], dtype=object), lengths),
            rows=np.concatenate([rows for _, rows in runs]),
            arrays={name: filled(group.specs(), count) for name, group in self._groups.items()},
            has={name: np.zeros(count, dtype=np.bool_) for name in self._groups},
        )
        for name, group in self._groups.items():
            for view_id, rows in runs:
                if f"{group.path}/{view_id}" in self._cache.revision.ledgers:
                    here = np.flatnonzero(stored.views == view_id)
                    stored.has[name][here] = True
                    self._read(group, view_id, rows, here, stored.arrays[name])
        return stored

    def _read(
        self,
        group: RowGroup,
        view_id: str,
        rows_N: NDArray[np.int64],
        here_N: NDArray[np.int64],
        into: Encoded,
    ) -> None:
        units_N = rows_N // group.unit_rows
        for unit in np.unique(units_N).tolist():
            mine = units_N == unit
            for array, content in self._unit(group, view_id, unit).items():
                into[array][here_N[mine]] = content[rows_N[mine] % group.unit_rows]

    def _unit(self, group: RowGroup, view_id: str, unit: int) -> Encoded:
        held = self._held.get(group.name)
        if held is not None and held[:2] == (view_id, unit):
            return held[2]
        read = self._cache.read_units(group.name, view_id, [unit])
        self._held[group.name] = (view_id, unit, read)
        return read
