"""Reads that are kept in memory, so that what several steps of a command need is read once."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, cast

from logitcache.cache.format.names import WITHDRAWN
from logitcache.cache.store.base import MAX_DOCUMENT_BYTES

if TYPE_CHECKING:
    from logitcache.cache.store.base import Location

__all__ = ["KeptDocuments", "KeptShards"]

_KEPT = ("commits/", "probes/", f"{WITHDRAWN}/")
_METADATA = "zarr.json"


class KeptDocuments:
    """A location whose small documents are read once, and which counts the bytes that move.

    Zarr metadata, commits, view fingerprints and withdrawals are kept once they are read or
    written; a commit is about 3 kB. So no other process may change them: those of a source are
    read at one moment, and whoever writes holds the manifest lock.

    Args:
        location: The location.

    Attributes:
        bytes_read: Bytes of the objects, or parts of objects, that were read.
        bytes_written: Bytes of the objects that were written, without claims.
    """

    def __init__(self, location: Location) -> None:
        self._location = location
        self._contents: dict[str, bytes] = {}
        self._lock = threading.Lock()
        self.bytes_read = self.bytes_written = 0

    def __str__(self) -> str:
        return str(self._location)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._location, name)

    @property
    def location(self) -> Location:
        """This object, as the location that it stands for."""
        return cast("Location", self)  # what is not defined here is that of the location

    def read(
        self,
        key: str,
        start: int | None = None,
        stop: int | None = None,
        *,
        most: int = MAX_DOCUMENT_BYTES,
    ) -> bytes | None:
        """Return an object, or a part of it; see :meth:`.Location.read`."""
        whole = start is None and stop is None
        kept = self._contents.get(key) if whole else None
        if kept is not None and len(kept) <= most:
            return kept
        content = self._location.read(key, start, stop, most=most)
        if content is not None:
            with self._lock:
                self.bytes_read += len(content)
            if whole:
                self._keep(key, content)
        return content

    def digest(self, key: str, *, most: int) -> tuple[int, str] | None:
        """Return size and sha256 of an object; see :meth:`.Location.digest`."""
        found = self._location.digest(key, most=most)
        with self._lock:
            self.bytes_read += 0 if found is None else found[0]
        return found

    def write(self, key: str, content: bytes) -> None:
        """Write an object; see :meth:`.Location.write`."""
        self._contents.pop(key, None)
        self._location.write(key, content)
        self._written(key, content)

    def write_new(self, key: str, content: bytes) -> bool:
        """Write an object unless there is one; see :meth:`.Location.write_new`."""
        self._contents.pop(key, None)
        is_new = self._location.write_new(key, content)
        if is_new:
            self._written(key, content)
        return is_new

    def delete(self, key: str) -> None:
        """Remove an object; see :meth:`.Location.delete`."""
        self._contents.pop(key, None)
        self._location.delete(key)

    def _written(self, key: str, content: bytes) -> None:
        with self._lock:
            self.bytes_written += len(content)
        self._keep(key, content)

    def _keep(self, key: str, content: bytes) -> None:
        if key.startswith(_KEPT) or key.rpartition("/")[2] == _METADATA:
            self._contents[key] = content


class KeptShards:
    """Shards in memory, by the sha256 of their bytes: also one that several caches have."""

    def __init__(self) -> None:
        self._contents: dict[str, bytes] = {}

    def read(self, sha256: str) -> bytes | None:
        """Return the bytes of that digest; None without them."""
        return self._contents.get(sha256)

    def keep(self, sha256: str, content: bytes) -> None:
        """Keep bytes of that digest."""
        self._contents[sha256] = content
