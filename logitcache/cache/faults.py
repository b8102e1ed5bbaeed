"""What can be wrong with a committed object, and how to tell which of it is.

One diagnosis for everybody: ``verify`` lists it, ``repair`` works it off, and a reader that meets
it while training stops with the same words.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from logitcache.cache.arrays import open_array
from logitcache.cache.format import NO_VIEW
from logitcache.cache.shards import BadShardError, index_bytes, shard_index
from logitcache.cache.store import CheckedStore
from logitcache.errors import CacheDamaged, LogitcacheError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from logitcache.cache.ledger import Commit, StoredArray
    from logitcache.cache.location import Location

__all__ = ["Cause", "Fault", "check_header", "diagnose"]

_ABSENT = np.uint64(2**64 - 1)


class Cause(StrEnum):
    """Why something is bad."""

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
    WITHDRAWAL = "withdrawal"


@dataclass(frozen=True)
class Fault:
    """One thing that is not as it was committed.

    Attributes:
        cause: What kind of damage.
        detail: The evidence, in words.
        key: The object it was found in.
        group: Path of the group; empty for what belongs to none.
        view: Id of the view; ``-`` for the samples.
        unit: Number of the unit.
        array: Name of the array.
        recompute: Whether the unit has to be computed again; what is written twice has not.
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
        """Where it is, as the cache counts: group, view, unit, array."""
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
        """Return the fault as what stops a run."""
        return CacheDamaged(
            f"the cache is damaged: {self.cause}",
            where=f"{location}/{self.key} ({self.place})",
            got=self.detail,
            hint=f"logitcache verify {location} lists all damage, logitcache repair mends it",
        )


def diagnose(
    location: Location,
    commit: Commit,
    path: str,
    found: tuple[int, str] | None,
    elsewhere: Mapping[str, str],
) -> Fault:
    """Say what is wrong with an object whose size or sha256 is not the committed one.

    Args:
        location: The cache.
        commit: The commit that names it.
        path: Path of its array.
        found: Its size and sha256, None if there is no such object.
        elsewhere: Where other committed shards belong, by sha256.
    """
    stored = commit.arrays[path]
    cause, detail = _cause(location, commit, path, stored, found, elsewhere)
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
    """Return what is wrong with the index at the end of a shard of the right size."""
    try:
        chunks = _chunk_count(location, path)
        tail = location.read(stored.key, -index_bytes(chunks)) or b""
        _check_index(tail, chunks, stored.bytes)
    except BadShardError as error:
        return str(error)
    return None


def _cause(
    location: Location,
    commit: Commit,
    path: str,
    stored: StoredArray,
    found: tuple[int, str] | None,
    elsewhere: Mapping[str, str],
) -> tuple[Cause, str]:
    if found is None:
        return Cause.MISSING, "no such object"
    size, digest = found
    sizes = f"{size} bytes, {stored.bytes} were committed"
    if size == 0:
        return Cause.EMPTY, sizes
    if digest in elsewhere:
        return Cause.MOVED, f"these are the bytes of {elsewhere[digest]}"
    content = location.read(stored.key, most=size) or b""
    if not any(content):
        return Cause.ZEROS, f"{size} bytes, all zero"
    try:
        index = _check_index(content, _chunk_count(location, path), len(content))
        return _inspect_chunks(location, commit, path, index, content, sizes)
    except BadShardError as error:
        if size < stored.bytes:
            return Cause.TRUNCATED, sizes
        return Cause.INDEX, f"{error}; {sizes}"


def _chunk_count(location: Location, path: str) -> int:
    """Return how many inner chunks a shard of an array has."""
    try:
        array = open_array(location.store(), path)
    except CacheDamaged as error:
        raise BadShardError(f"its {error.what.removeprefix('an ')}") from None
    if array.shards is None:
        raise BadShardError("its array has no shards")
    return math.prod(s // c for s, c in zip(array.shards, array.chunks, strict=True))


def _check_index(content: bytes, chunks: int, size: int) -> NDArray[np.uint64]:
    """Return (offset, bytes) of every inner chunk of a shard of that size, uint64 (n, 2)."""
    index = shard_index(np.frombuffer(content, np.uint8), chunks)
    present = index[index[:, 0] != _ABSENT]
    if any(int(offset) + int(length) > size for offset, length in present):
        raise BadShardError("its index points behind its end")
    return index


def _inspect_chunks(
    location: Location,
    commit: Commit,
    path: str,
    index: NDArray[np.uint64],
    shard: bytes,
    sizes: str,
) -> tuple[Cause, str]:
    """Look into a shard whose index holds: which inner chunks are gone, damaged or blank."""
    count = len(index)
    absent = np.flatnonzero(index[:, 0] == _ABSENT).tolist()
    if absent:
        return Cause.CHUNKS_MISSING, f"{len(absent)} of {count} inner chunks: {_listed(absent)}"
    damaged, blank = [], []
    store = CheckedStore(location, {commit.arrays[path].key: lambda: shard})
    array = open_array(store, path)
    rows = (commit.rows[1] - commit.rows[0]) // count
    slot = int(commit.arrays[path].key.split("/c/")[1].split("/")[0])
    for chunk in range(count):
        start = commit.rows[0] + chunk * rows
        wanted = slice(start, start + rows)
        try:
            content = np.asarray(array[wanted if commit.view == NO_VIEW else (slot, wanted)])
        except LogitcacheError:  # a store that fails, which says nothing about its content
            raise
        except Exception:  # zarr and numcodecs raise a kind each; which, is of no interest
            damaged.append(chunk)
            continue
        if _is_fill(content, array.fill_value):
            blank.append(chunk)
    if damaged:
        return Cause.CHUNK_DAMAGED, f"checksum of inner chunk {_listed(damaged)} of {count}"
    if blank and len(blank) < count:
        return Cause.CHUNK_FILLED, f"inner chunk {_listed(blank)} of {count} holds nothing"
    return Cause.FOREIGN, f"whole, but not what was committed (an earlier run's?); {sizes}"


def _is_fill(content: NDArray[Any], fill: Any) -> bool:
    if content.dtype.kind == "f" and np.isnan(fill):
        return bool(np.isnan(content).all())
    return bool((content == fill).all())


def _listed(numbers: list[int]) -> str:
    shown = ", ".join(str(number) for number in numbers[:8])
    return shown if len(numbers) <= 8 else f"{shown}, …"
