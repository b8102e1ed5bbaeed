"""Values of all rows, read unit by unit, with the most recently used units in memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

__all__ = ["UnitCache"]


class UnitCache:
    """Values by row, read unit by unit when they are first used; thread-safe.

    A copy in another process starts with no units in memory.

    Args:
        read: Returns the values (U, ...) of a unit by its number; can be pickled.
        unit_rows: Number of rows per unit, U.

    Attributes:
        keep: Number of units that stay in memory; the least recently used is dropped first.
    """

    def __init__(self, read: Callable[[int], NDArray[Any]], unit_rows: int) -> None:
        self.keep = 4
        self._read = read
        self._unit_rows = unit_rows
        self._units: OrderedDict[int, NDArray[Any]] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        # built again, so with a lock of its own
        return type(self), (self._read, self._unit_rows), {"keep": self.keep}

    def at(self, row: int) -> NDArray[Any]:
        """Return the value of one row."""
        value: NDArray[Any] = self._unit(row // self._unit_rows)[row % self._unit_rows]
        return value

    def take(self, rows_B: NDArray[np.int64]) -> NDArray[Any]:
        """Return the values of some rows, (B, ...)."""
        units_B = rows_B // self._unit_rows
        if len(units_B) and (units_B == units_B[0]).all():
            return self._unit(int(units_B[0]))[rows_B % self._unit_rows]
        units, slots = np.unique(units_B, return_inverse=True)
        first = self._unit(int(units[0])) if len(units) else self._unit(0)
        found = np.empty((len(rows_B), *first.shape[1:]), dtype=first.dtype)
        for slot, unit in enumerate(units.tolist()):
            here = np.flatnonzero(slots == slot)
            found[here] = self._unit(unit)[rows_B[here] % self._unit_rows]
        return found

    def _unit(self, unit: int) -> NDArray[Any]:
        # the lock is kept while reading, so that threads that need one unit read it once
        with self._lock:
            if unit not in self._units:
                self._units[unit] = self._read(unit)
                if len(self._units) > self.keep:
                    self._units.popitem(last=False)
            self._units.move_to_end(unit)
            return self._units[unit]
