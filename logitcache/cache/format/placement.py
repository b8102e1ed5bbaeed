"""Placement of the arrays of one view of a group: paths, keys of shards, rows of a unit.

Everything that reads or writes units gets it from here, so a commit that names other objects than
these is refused wherever it comes from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from logitcache.cache.format.ledger import Ledger, parse_ledger
from logitcache.cache.format.names import MAX_CONTENT_BYTES
from logitcache.cache.format.shards import (
    ArrayDocument,
    BadShardError,
    ShardLayout,
    max_shard_bytes,
    parse_array,
)
from logitcache.cache.store.base import MAX_DOCUMENT_BYTES
from logitcache.errors import CacheDamaged, first_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from numpy.typing import NDArray

    from logitcache.cache.format.ledger import Commit, Revision
    from logitcache.cache.store.base import Location
    from logitcache.encoding.arrays import ArraySpec

__all__ = ["Placement", "parents_of", "units_of", "units_of_segments"]


@dataclass(frozen=True)
class Placement:
    """Where the arrays of one view of a group are.

    Attributes:
        group: Path of the group.
        view: Id of the view; ``-`` for samples and images.
        unit_rows: Rows of a unit of the group.
        slot: Index of the view on the first axis; None where arrays have no such axis.
        specs: Shape and dtype of a row by name of the array; None for strings.
    """

    group: str
    view: str
    unit_rows: int
    slot: int | None
    specs: Mapping[str, ArraySpec | None]

    @property
    def ledger(self) -> str:
        """Name of its ledger in a revision."""
        return f"{self.group}/{self.view}"

    @property
    def holder(self) -> str:
        """Path of the group that contains the arrays: for partners, the group of their view."""
        return self.path(next(iter(self.specs))).rpartition("/")[0]

    def path(self, name: str) -> str:
        """Return the path of an array."""
        return f"{self.group}/{name}"

    def page(self, name: str) -> int:
        """Return the bytes of a page of an array of pages; 0 for an array with rows."""
        spec = self.specs[name]
        return 0 if spec is None else spec.page

    def shard_key(self, name: str, unit: int) -> str:
        """Return the key of the shard of a unit."""
        if self.page(name):
            return f"{self.path(name)}/c/{unit}/0"
        spec = self.specs[name]
        leading = (unit,) if self.slot is None else (self.slot, unit)
        axes = (*leading, *(0 for _ in (() if spec is None else spec.shape)))
        return f"{self.path(name)}/c/{'/'.join(map(str, axes))}"

    def place(self, name: str, unit: int, length: int) -> tuple[int | slice, ...]:
        """Return the index of a unit in an array, for so many rows; for so many bytes of pages."""
        if self.page(name):
            return unit, slice(0, length)
        rows = slice(unit * self.unit_rows, unit * self.unit_rows + length)
        return (rows,) if self.slot is None else (self.slot, rows)

    def length(self, name: str, capacity: int) -> int:
        """Return the length of the axis of rows, or of the units of pages, for so many rows."""
        return capacity // self.unit_rows if self.page(name) else capacity

    def empty(self, name: str, rows: int) -> NDArray[Any]:
        """Return an array for so many rows, of objects for strings; its values are undefined.

        For an array of pages it has the bytes of each row as an object.
        """
        spec = self.specs[name]
        if spec is None or spec.page:
            return np.empty(rows, dtype=object)
        return np.empty((rows, *spec.shape), spec.dtype)

    def max_bytes(self, name: str) -> int:
        """Return the largest size that a shard of an array can have."""
        return max_shard_bytes(self.specs[name], self.unit_rows)

    def fault_of(self, commit: Commit, unit: int) -> str | None:
        """Return how a commit contradicts the number of its unit; None if it does not."""
        start = unit * self.unit_rows
        if (commit.group, commit.view, commit.unit) != (self.group, self.view, unit):
            return f"it is of {commit.group}, view {commit.view}, unit {commit.unit}"
        if commit.rows != (start, start + self.unit_rows):
            return f"its rows are {commit.rows[0]} to {commit.rows[1]}"
        if commit.arrays.keys() != {self.path(name) for name in self.specs}:
            return f"its arrays are {', '.join(sorted(commit.arrays))[:200]}"
        for name in self.specs:
            stored = commit.arrays[self.path(name)]
            if stored.key != self.shard_key(name, unit):
                return f"its shard of {name} is {stored.key[:200]}"
            if stored.bytes > self.max_bytes(name):
                return f"its shard of {name} has {stored.bytes} bytes"
        return None

    def check(self, commits: Mapping[int, Commit], where: str) -> None:
        """Compare commits with the numbers of their units.

        Raises:
            CacheDamaged: One describes another unit.
        """
        for unit, commit in commits.items():
            fault = self.fault_of(commit, unit)
            if fault is not None:
                raise CacheDamaged(
                    "a commit describes another unit than its key names",
                    where=where,
                    expected=f"{self.group}, view {self.view}, unit {unit}",
                    got=fault,
                )

    def layout(self, location: Location, name: str, rows_end: int = 0) -> ShardLayout:
        """Read the metadata of an array.

        Args:
            location: The cache.
            name: Name of the array.
            rows_end: One past the last row that it must have.

        Raises:
            CacheDamaged: It is missing or not as the format describes this array.
        """
        key = f"{self.path(name)}/zarr.json"
        where = f"{location}/{key}"
        content = location.read(key, most=MAX_DOCUMENT_BYTES)
        if content is None:
            raise CacheDamaged("the Zarr metadata of an array are missing", where=where)
        document = parse_array(content, where)
        try:
            layout = document.layout(self.specs[name], self._leading(name))
            fault = None
        except BadShardError as error:
            fault = str(error)
        else:
            fault = self._fault_of_shape(name, document, layout, rows_end)
        if fault is not None:
            what = "the Zarr metadata of an array cannot be used"
            raise CacheDamaged(what, where=where, got=fault)
        return layout

    def _leading(self, name: str) -> int:
        """Return the number of axes before those of a row: views and rows, or units and pages."""
        return 1 if self.slot is None and not self.page(name) else 2

    def _fault_of_shape(
        self, name: str, document: ArrayDocument, layout: ShardLayout, rows_end: int
    ) -> str | None:
        if self.page(name):
            return self._fault_of_pages(self.page(name), document, layout, rows_end)
        if layout.rows != self.unit_rows:
            return f"shards of {layout.rows} rows instead of {self.unit_rows}"
        *views, rows = document.shape[: 1 if self.slot is None else 2]
        if rows < rows_end:
            return f"{rows} rows instead of at least {rows_end}"
        if self.slot is not None and views[0] <= self.slot:
            return f"{views[0]} views instead of at least {self.slot + 1}"
        return None

    def _fault_of_pages(
        self, page: int, document: ArrayDocument, layout: ShardLayout, rows_end: int
    ) -> str | None:
        units = -(-rows_end // self.unit_rows)
        if (layout.rows, layout.inner_rows, layout.chain) != (MAX_CONTENT_BYTES, page, "plain"):
            return f"shards of {layout.rows} bytes in {layout.chain} chunks of {layout.inner_rows}"
        if document.shape[1] != MAX_CONTENT_BYTES or document.shape[0] < units:
            return f"{document.shape[0]} units of {document.shape[1]} bytes instead of {units}"
        return None

    def units(self, segments: Iterable[tuple[int, int]], block_rows: int) -> list[int]:
        """Return the units that rows are in, ascending.

        Args:
            segments: (start, rows) of each segment.
            block_rows: U, a multiple of the rows of a unit.
        """
        return units_of_segments(segments, block_rows, self.unit_rows)


def parents_of(path: str) -> list[str]:
    """Return the paths between the root and another one, both left out."""
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


def units_of(start: int, stop: int, unit_rows: int) -> range:
    """Return the units that rows [start, stop) touch."""
    return range(start // unit_rows, -(-stop // unit_rows))


def units_of_segments(
    segments: Iterable[tuple[int, int]], block_rows: int, unit_rows: int
) -> list[int]:
    """Return the units of all blocks of some segments, padding at their ends included.

    Args:
        segments: (start, rows) of each segment.
        block_rows: U, a multiple of the rows of a unit.
        unit_rows: Rows of a unit.
    """
    blocks = [units_of(start, start + rows, block_rows) for start, rows in segments]
    ends = [(block.start * block_rows, block.stop * block_rows) for block in blocks]
    return [unit for start, stop in ends for unit in units_of(start, stop, unit_rows)]


def read_ledger(
    location: Location, revision: Revision, placement: Placement, units: Collection[int]
) -> Ledger:
    """Read a ledger and compare it with the units that it has to list.

    Args:
        location: The cache.
        revision: What is sealed.
        placement: Placement of the view.
        units: Numbers of the units that contain rows.

    Raises:
        CacheDamaged: It is missing, not the one that was sealed, or it lists other units.
    """
    pointer = revision.ledgers.get(placement.ledger)
    if pointer is None or pointer.units != len(units):
        raise CacheDamaged(
            "a ledger does not list the units of the cache",
            where=f"{location}/revisions/{revision.number}.json, {placement.ledger}",
            expected=f"{len(units)} units",
            got="no ledger" if pointer is None else f"{pointer.units} units",
        )
    ledger = parse_ledger(location, pointer)
    if (ledger.group, ledger.view) != (placement.group, placement.view):
        raise CacheDamaged(
            "a ledger belongs to another view",
            where=f"{location}/{pointer.key}",
            expected=placement.ledger,
            got=f"{ledger.group}/{ledger.view}",
        )
    if ledger.commits.keys() != set(units):
        raise CacheDamaged(
            "a ledger does not list the units of the cache",
            where=f"{location}/{pointer.key}",
            expected=f"units {min(units, default=0)} to {max(units, default=0)}",
            got=f"units {first_of([str(unit) for unit in sorted(ledger.commits)])}",
        )
    placement.check(ledger.commits, f"{location}/{pointer.key}")
    return ledger
