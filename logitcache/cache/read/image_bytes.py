"""Random access to the encoded bytes of the images in a cache.

An image is read by one request for its own bytes. Of a distant cache, whole shards are copied to
the local disk in the background at the same time, and images are read from the copies once these
exist.
"""

from __future__ import annotations

import contextlib
import hashlib
import queue
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from logitcache.cache.format.images import image_fault, image_range, shard_range, without_checksums
from logitcache.cache.format.names import sha256
from logitcache.cache.read.objects import CommittedObjects
from logitcache.errors import CacheDamaged, LogitcacheError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from logitcache.cache.format.ledger import Commit, Ledger
    from logitcache.cache.format.placement import Placement
    from logitcache.cache.read.shard_cache import ShardCache
    from logitcache.cache.store.base import Location

__all__ = ["ImageBytes"]

_CONTENT = "content"


class ImageBytes:
    """Encoded bytes of the images of a cache, by row; thread-safe.

    Args:
        location: The cache.
        placement: Placement of the images.
        commit_of: Returns the commit of a unit, which must exist.
        copies: Local copies of whole shards, if all of them fit; None to keep none.
        folder: Beginning of the names of its arrays.
    """

    def __init__(
        self,
        location: Location,
        placement: Placement,
        commit_of: Callable[[int], Commit],
        copies: ShardCache | None = None,
        folder: str = "",
    ) -> None:
        self._location, self._placement = location, placement
        self._content, self._folder = f"{folder}{_CONTENT}", folder
        self._commit_of = commit_of
        self._objects = CommittedObjects(location, copies)
        self._copies = (
            None if copies is None else _Copies(location, placement, self._content, copies)
        )
        self._path = placement.path(self._content)
        self._ends: dict[int, NDArray[np.int64]] = {}
        self._digests: dict[int, NDArray[np.uint8]] = {}
        self._lock = threading.Lock()

    @classmethod
    def of(
        cls,
        location: Location,
        placement: Placement,
        ledger: Ledger,
        copies: ShardCache | None,
        folder: str = "",
    ) -> ImageBytes:
        """Return the sealed images of a cache.

        Whole shards are copied only if there is room for those of all images: in a random order of
        images, each copy would be replaced before most of its images were read.
        """
        path = placement.path(f"{folder}{_CONTENT}")
        size = sum(commit.arrays[path].bytes for commit in ledger.commits.values())
        kept = copies if copies is not None and size <= copies.most_bytes else None
        return cls(location, placement, ledger.commits.__getitem__, kept, folder)

    def checked(self, row: int, digest: bytes) -> tuple[bytes, bytes]:
        """Return the bytes of an image, and their digest, which the caller compares.

        Where it is not the expected one, they are read once more: a file that was kept open may
        have been replaced.
        """
        image = self.read(row)
        found = _digest(image)
        if found != digest and image:
            image = self.read(row, afresh=True)
            found = _digest(image)
        return image, found

    def read(self, row: int, *, afresh: bool = False) -> bytes:
        """Return the bytes of an image; empty for a row without one.

        Args:
            row: Row of the image.
            afresh: Whether files that were kept open are not used.

        Raises:
            CacheDamaged: The shard is missing or too short.
        """
        unit, offset = divmod(row, self._placement.unit_rows)
        begin, end = image_range(self.ends(unit), offset)
        if begin == end:
            return b""
        start, stop = shard_range(begin, end)
        commit = self._commit_of(unit)
        part = None if self._copies is None else self._copies.read(commit, start, stop)
        if part is None and stop <= commit.arrays[self._path].bytes:
            part = self._received(commit, start, stop, afresh=afresh)
        if part is None or len(part) != stop - start:
            raise CacheDamaged(
                "the bytes of an image are not in its shard",
                where=f"{self._location}/{self._placement.shard_key(self._content, unit)}",
                expected=f"bytes {start} to {stop}",
                got=f"{0 if part is None else len(part)} bytes",
                hint="logitcache verify lists all damage",
            )
        return without_checksums(part, begin, end)

    def source_digest(self, row: int) -> bytes:
        """Return the digest of the image that an image was encoded from."""
        unit, offset = divmod(row, self._placement.unit_rows)
        digest: bytes = self._array(unit, "source_digest")[offset].tobytes()
        return digest

    def _received(self, commit: Commit, start: int, stop: int, *, afresh: bool) -> bytes | None:
        """Return a part of a shard; where a server sends no parts, that of its copy."""
        key = commit.arrays[self._path].key
        read = self._location.read if afresh else self._location.read_part
        try:
            return read(key, start, stop)
        except StorageError:
            whole = None if self._copies is None else self._copies.copy(commit)
            if whole is None:
                raise
            return whole[start:stop]

    def ends(self, unit: int) -> NDArray[np.int64]:
        """Return where the images of a unit end in its bytes, int64 (U,); read once.

        Raises:
            CacheDamaged: The array is not the one that was committed, or impossible.
        """
        known = self._ends.get(unit)
        if known is not None:
            return known
        with self._lock:
            if unit not in self._ends:
                end = self._array(unit, "end")
                fault = image_fault({"end": end})
                if fault is not None:
                    where = f"{self._location}, {self._placement.ledger}, unit {unit}"
                    raise CacheDamaged("the ends of images are impossible", where=where, got=fault)
                self._ends[unit] = end.astype(np.int64)
            return self._ends[unit]

    def digest(self, row: int) -> bytes:
        """Return the digest that an array next to the images has for one of them."""
        unit, offset = divmod(row, self._placement.unit_rows)
        digests = self._digests.get(unit)
        if digests is None:
            with self._lock:
                if unit not in self._digests:
                    self._digests[unit] = self._array(unit, "digest")
                digests = self._digests[unit]
        found: bytes = digests[offset].tobytes()
        return found

    def _array(self, unit: int, name: str) -> NDArray[Any]:
        name = f"{self._folder}{name}"
        return self._objects.read(self._placement, [self._commit_of(unit)], [name])[name]


def _digest(image: bytes) -> bytes:
    return hashlib.blake2b(image, digest_size=16).digest()


class _Copies:
    """Copies of whole shards, made in the background by daemon threads."""

    def __init__(
        self, location: Location, placement: Placement, content: str, copies: ShardCache
    ) -> None:
        self._location, self._placement, self._copies = location, placement, copies
        self._content = content
        self._wanted: queue.SimpleQueue[Commit] = queue.SimpleQueue()
        self._requested: set[int] = set()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()

    def read(self, commit: Commit, start: int, stop: int) -> bytes | None:
        """Return a part of a shard from its copy; None, and start to copy it, without one."""
        stored = commit.arrays[self._placement.path(self._content)]
        part = self._copies.read_part(stored.sha256, start, stop)
        if part is None:
            self._request(commit)
        return part

    def _request(self, commit: Commit) -> None:
        with self._lock:
            if commit.unit in self._requested:
                return
            self._requested.add(commit.unit)
            self._wanted.put(commit)
            if len(self._threads) < self._location.in_flight:
                # daemons: a program that ends does not wait for copies that nobody needs
                thread = threading.Thread(target=self._work, name="copies", daemon=True)
                self._threads.append(thread)
                thread.start()

    def copy(self, commit: Commit) -> bytes | None:
        """Read a whole shard and keep a copy; None if it is not the committed one."""
        stored = commit.arrays[self._placement.path(self._content)]
        content = self._location.read(stored.key, most=self._placement.max_bytes(self._content))
        if content is None or sha256(content) != stored.sha256:
            return None
        self._copies.keep(stored.sha256, content)
        return content

    def _work(self) -> None:
        while True:
            # an image that is requested by itself reports the error
            with contextlib.suppress(LogitcacheError):
                self.copy(self._wanted.get())
