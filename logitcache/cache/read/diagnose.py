"""Diagnosis of damaged objects: causes, and the evidence for each.

``verify`` lists the same faults that ``repair`` works on and that a reader raises as an error.
"""

from __future__ import annotations

import math
import operator
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from logitcache.cache.format.names import MAX_CONTENT_BYTES, NO_VIEW
from logitcache.cache.format.shards import (
    ArrayDocument,
    BadShardError,
    check_index,
    decode_chunk,
    index_bytes,
    parse_array,
)
from logitcache.cache.store.base import MAX_DOCUMENT_BYTES
from logitcache.errors import CacheDamaged

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from logitcache.cache.format.ledger import Commit, StoredArray
    from logitcache.cache.store.base import Location

__all__ = ["Cause", "Fault", "check_header", "diagnose"]

_ABSENT = np.uint64(2**64 - 1)


class Cause(StrEnum):
    """Kinds of damage."""

    MISSING = "missing"
    EMPTY = "empty"
    TRUNCATED = "truncated"
    ZEROS = "zeros"
    MOVED = "another unit's shard"
    INDEX = "damaged index"
    CHUNKS_MISSING = "inner chunks missing"
    CHUNK_DAMAGED = "damaged inner chunk"
    CHUNK_FILLED = "inner chunk overwritten by fill"
    FOREIGN = "another content"
    UNREADABLE = "unreadable"
    COMMIT = "commit"
    LEDGER = "ledger"
    REVISION = "revision"
    METADATA = "metadata"
    MANIFEST = "manifest"
    ROLLED_BACK = "rolled back"
    WITHDRAWAL = "withdrawal"


@dataclass(frozen=True)
class Fault:
    """One object that is not as it was committed.

    Attributes:
        cause: Kind of the damage.
        detail: The evidence, as text.
        key: Key of the object.
        group: Path of the group; empty for objects of no group.
        view: Id of the view; ``-`` for the samples.
        unit: Number of the unit.
        array: Name of the array.
        recompute: Whether the unit has to be computed again; documents are restored from copies.
    """

    cause: Cause
    detail: str
    key: str
    group: str = ""
    view: str = ""
    unit: int | None = None
    array: str = ""
    recompute: bool = False

    @property
    def place(self) -> str:
        """Group, view, unit and array of the object."""
        parts = [
            self.group,
            f"view {self.view}" if self.view not in {"", NO_VIEW} else "",
            f"unit {self.unit}" if self.unit is not None else "",
            f"array {self.array}" if self.array else "",
        ]
        return ", ".join(part for part in parts if part) or self.key

    def to_json(self) -> dict[str, Any]:
        """Return the fault as JSON values."""
        return {**asdict(self), "cause": str(self.cause)}

    def error(self, location: Location) -> CacheDamaged:
        """Return the fault as an error."""
        return CacheDamaged(
            f"the cache is damaged: {self.cause}",
            where=f"{location}/{self.key} ({self.place})",
            got=self.detail,
            hint=f"logitcache verify {location} lists all damage; logitcache repair fixes it",
        )


def diagnose(
    location: Location,
    commit: Commit,
    path: str,
    found: tuple[int, str] | None,
    elsewhere: Mapping[str, str],
) -> Fault:
    """Return the fault of an object whose size or sha256 is not the committed one.

    Args:
        location: The cache.
        commit: The commit that lists it.
        path: Path of its array.
        found: Its size and sha256; None if there is no such object.
        elsewhere: Units of other committed shards, as text by sha256.
    """
    stored = commit.arrays[path]
    cause, detail = _cause(location, path, stored, found, elsewhere)
    return Fault(
        cause=cause,
        detail=detail,
        key=stored.key,
        group=commit.group,
        view=commit.view,
        unit=commit.unit,
        array=path.rpartition("/")[2],
        recompute=True,
    )


def check_header(location: Location, path: str, stored: StoredArray) -> str | None:
    """Return what is wrong with the index of a shard of the right size; None if nothing is."""
    try:
        chunks = _Chunks.of(location, path).count
        tail = location.read(stored.key, -index_bytes(chunks)) or b""
        check_index(tail, chunks, stored.bytes)
    except BadShardError as error:
        return str(error)
    return None


@dataclass(frozen=True)
class _Chunks:
    """Inner chunks of a shard, as the metadata of its array describes them.

    Attributes:
        count: Number of inner chunks of a shard.
        shape: Shape of each of them.
        document: Metadata of the array.
        has_pages: Whether it is an array of pages, whose last ones may be absent.
    """

    count: int
    shape: tuple[int, ...]
    document: ArrayDocument
    has_pages: bool = False

    @classmethod
    def of(cls, location: Location, path: str) -> _Chunks:
        """Read the metadata of an array.

        Raises:
            BadShardError: It cannot be used.
        """
        key = f"{path}/zarr.json"
        try:
            document = parse_array(location.read(key) or b"", key)
        except CacheDamaged as error:
            raise BadShardError(error.what) from None
        shard = document.chunk_grid.configuration.chunk_shape
        inner = document.codecs[0].configuration.chunk_shape
        if len(shard) != len(inner) or not all(inner) or any(map(operator.mod, shard, inner)):
            raise BadShardError("the inner chunks of its array do not divide the shards")
        has_pages = shard[-1] == MAX_CONTENT_BYTES
        return cls(math.prod(map(operator.floordiv, shard, inner)), inner, document, has_pages)

    def empty(self) -> NDArray[Any]:
        """Return an array for the rows of one inner chunk."""
        name = self.document.data_type
        return np.empty(self.shape, dtype=object if name == "string" else name)

    def is_fill(self, content: NDArray[Any]) -> bool:
        """Return whether rows contain nothing but the fill value."""
        fill = self.document.fill_value
        if fill == "NaN":
            return content.dtype.kind == "f" and bool(np.isnan(content).all())
        return bool((content == fill).all())


def _cause(
    location: Location,
    path: str,
    stored: StoredArray,
    found: tuple[int, str] | None,
    elsewhere: Mapping[str, str],
) -> tuple[Cause, str]:
    if found is None:
        return Cause.MISSING, "no such object"
    size, digest = found
    sizes = f"{size} bytes instead of the committed {stored.bytes}"
    if size == 0:
        return Cause.EMPTY, sizes
    if digest in elsewhere:
        return Cause.MOVED, f"these are the bytes of {elsewhere[digest]}"
    if size > max(stored.bytes, MAX_DOCUMENT_BYTES):  # too large to be read for a diagnosis
        return Cause.FOREIGN, sizes
    content = location.read(stored.key, most=size) or b""
    if not any(content):
        return Cause.ZEROS, f"{size} bytes, all zero"
    try:
        chunks = _Chunks.of(location, path)
        index = check_index(content, chunks.count, len(content))
        return _inspect_chunks(chunks, index, content, sizes)
    except BadShardError as error:
        if size < stored.bytes:
            return Cause.TRUNCATED, sizes
        return Cause.INDEX, f"{error}; {sizes}"


def _inspect_chunks(
    chunks: _Chunks, index: NDArray[np.uint64], shard: bytes, sizes: str
) -> tuple[Cause, str]:
    """Return the cause for a shard with an intact index, from its inner chunks."""
    present = index[:, 0] != _ABSENT
    if chunks.has_pages:
        index, present = index[: present.sum()], present[: present.sum()]
    count = len(index)
    absent = np.flatnonzero(~present).tolist()
    if absent:
        return Cause.CHUNKS_MISSING, f"{len(absent)} of {count} inner chunks: {_listed(absent)}"
    damaged, blank = [], []
    content, rows = np.frombuffer(shard, np.uint8), chunks.empty()
    for chunk, (offset, length) in enumerate(index.tolist()):
        try:
            decode_chunk(content[offset : offset + length], rows, chunks.document.chain)
        except BadShardError:
            damaged.append(chunk)
            continue
        if chunks.is_fill(rows):
            blank.append(chunk)
    if damaged:
        return Cause.CHUNK_DAMAGED, f"wrong checksum of inner chunk {_listed(damaged)} of {count}"
    # a shard of unreadable images consists of fill values alone
    if blank and len(blank) < count:
        return Cause.CHUNK_FILLED, f"only fill values in inner chunk {_listed(blank)} of {count}"
    return Cause.FOREIGN, f"an intact shard, but not the committed one; {sizes}"


def _listed(numbers: list[int]) -> str:
    shown = ", ".join(str(number) for number in numbers[:8])
    return shown if len(numbers) <= 8 else f"{shown}, …"
