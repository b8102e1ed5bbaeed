"""What can be wrong with a committed object, and how to tell which of it is.

One diagnosis for everybody: ``verify`` lists it, ``repair`` works it off, and a reader that meets
it while training stops with the same words.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np

from logitcache.cache.arrays import open_array
from logitcache.cache.format import NO_VIEW
from logitcache.errors import CacheDamaged

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from logitcache.cache.ledger import Commit, StoredArray
    from logitcache.cache.location import LocalLocation

__all__ = ["Cause", "Fault", "check_header", "diagnose"]

_ABSENT = np.uint64(2**64 - 1)
_ENTRY_BYTES, _CRC_BYTES = 16, 4


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

    def error(self, location: LocalLocation) -> CacheDamaged:
        """Return the fault as what stops a run."""
        return CacheDamaged(
            f"the cache is damaged: {self.cause}",
            where=f"{location}/{self.key} ({self.place})",
            got=self.detail,
            hint=f"logitcache verify {location} lists all damage, logitcache repair mends it",
        )


def diagnose(
    location: LocalLocation,
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


def check_header(location: LocalLocation, path: str, stored: StoredArray) -> str | None:
    """Return what is wrong with the index at the end of a shard of the right size."""
    try:
        _read_index(location, path, stored.key, stored.bytes)
    except _BadIndexError as error:
        return str(error)
    return None


class _BadIndexError(Exception):
    """The index of a shard cannot be believed."""


def _cause(
    location: LocalLocation,
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
    content = location.read(stored.key) or b""
    if not any(content):
        return Cause.ZEROS, f"{size} bytes, all zero"
    try:
        index = _read_index(location, path, stored.key, size)
        return _inspect_chunks(location, commit, path, index, sizes)
    except _BadIndexError as error:
        if size < stored.bytes:
            return Cause.TRUNCATED, sizes
        return Cause.INDEX, f"{error}; {sizes}"


def _read_index(location: LocalLocation, path: str, key: str, size: int) -> NDArray[np.uint64]:
    """Return (offset, bytes) of every inner chunk, uint64 (n, 2)."""
    try:
        array = open_array(location.store(), path)
    except CacheDamaged as error:
        raise _BadIndexError(f"its {error.what.removeprefix('an ')}") from None
    if array.shards is None:
        raise _BadIndexError("its array has no shards")
    count = math.prod(s // c for s, c in zip(array.shards, array.chunks, strict=True))
    index_bytes = count * _ENTRY_BYTES
    if not count or index_bytes + _CRC_BYTES > size:
        raise _BadIndexError("too short for its index")
    tail = location.tail(key, index_bytes + _CRC_BYTES)
    body, checksum = tail[:-_CRC_BYTES], tail[-_CRC_BYTES:]
    if google_crc32c.value(body) != int.from_bytes(checksum, "little"):
        raise _BadIndexError("the checksum of its index does not hold")
    index = np.frombuffer(body, dtype="<u8").reshape(count, 2)
    present = index[index[:, 0] != _ABSENT]
    if any(int(offset) + int(length) > size for offset, length in present):
        raise _BadIndexError("its index points behind its end")
    return index


def _inspect_chunks(
    location: LocalLocation, commit: Commit, path: str, index: NDArray[np.uint64], sizes: str
) -> tuple[Cause, str]:
    """Look into a shard whose index holds: which inner chunks are gone, damaged or blank."""
    count = len(index)
    absent = np.flatnonzero(index[:, 0] == _ABSENT).tolist()
    if absent:
        return Cause.CHUNKS_MISSING, f"{len(absent)} of {count} inner chunks: {_listed(absent)}"
    damaged, blank = [], []
    array = open_array(location.store(), path)
    rows = (commit.rows[1] - commit.rows[0]) // count
    slot = int(commit.arrays[path].key.split("/c/")[1].split("/")[0])
    for chunk in range(count):
        start = commit.rows[0] + chunk * rows
        wanted = slice(start, start + rows)
        try:
            content = np.asarray(array[wanted if commit.view == NO_VIEW else (slot, wanted)])
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
