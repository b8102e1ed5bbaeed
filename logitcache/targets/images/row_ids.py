"""Sets of row numbers, in constant memory where all rows are present."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["AllRows", "RowIds", "SomeRows", "row_ids_of"]


class RowIds(Protocol):
    """Distinct row numbers in ascending order."""

    def __len__(self) -> int: ...

    def take(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the numbers at some positions, int64."""
        ...

    def find(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how many numbers are smaller than each row: its position, if it is present."""
        ...

    def keep(self, chosen: NDArray[np.bool_]) -> RowIds:
        """Return the numbers at the chosen positions."""
        ...


@dataclass(frozen=True)
class AllRows:
    """All row numbers below a count."""

    count: int

    def __len__(self) -> int:
        return self.count

    def take(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the positions, which are the numbers."""
        return positions

    def find(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the rows, which are the positions."""
        return np.minimum(rows, self.count)

    def keep(self, chosen: NDArray[np.bool_]) -> RowIds:
        """Return the chosen numbers."""
        rows = np.flatnonzero(chosen)
        small = len(rows) == 0 or int(rows[-1]) < 2**31
        return row_ids_of(rows.astype(np.int32) if small else rows)


@dataclass(frozen=True)
class SomeRows:
    """Row numbers as an array.

    Attributes:
        rows: Ascending row numbers, int32 or int64 (N,).
    """

    rows: NDArray[np.signedinteger]

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the numbers at some positions, int64."""
        return self.rows[positions].astype(np.int64)

    def find(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how many numbers are smaller than each row."""
        # with different dtypes numpy would copy all numbers into the wider one
        return np.searchsorted(self.rows, rows.astype(self.rows.dtype))

    def keep(self, chosen: NDArray[np.bool_]) -> RowIds:
        """Return the chosen numbers."""
        return row_ids_of(self.rows[chosen])


def row_ids_of(rows: NDArray[np.signedinteger]) -> RowIds:
    """Return ascending row numbers; the array is kept only if some rows are missing."""
    if len(rows) == 0 or int(rows[-1]) == len(rows) - 1:
        return AllRows(len(rows))
    return SomeRows(rows)
