"""Where a cache lies: bytes by key, on a disk, in memory or in an object store.

One grammar: a path or ``file://``, ``memory://NAME``, ``s3://BUCKET/PREFIX``, ``gs://…``,
``http(s)://…`` and ``hf://…``. Credentials come from the standard environment or profile of each
store and are never written anywhere; those in a URL are shown as ``***``.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from logitcache.cache.format.documents import MAX_DOCUMENT_BYTES
from logitcache.cache.store.local import LocalLocation
from logitcache.cache.store.remote import RemoteLocation
from logitcache.cache.store.urls import parse_url
from logitcache.errors import CacheDamaged

if TYPE_CHECKING:
    from collections.abc import Iterable

    from logitcache.cache.store.zarr_store import RecordingStore

__all__ = ["Location", "locate", "numbers"]

MOST_NUMBERED = 10_000
"""Documents below one prefix: withdrawals, probes. Each of them is read when a cache is opened."""

_NUMBERED = re.compile(r"([1-9][0-9]{0,8})\.json")


class Location(Protocol):
    """What a cache asks of the place it lies in; ``str()`` names it without secrets.

    Keys are POSIX paths relative to the cache; one that leads out of it is
    :class:`~logitcache.errors.CacheDamaged`. A store that fails, after retries where they may help,
    is a :class:`~logitcache.errors.StorageError` that names the object.
    """

    @property
    def lists(self) -> bool:
        """Whether keys can be listed; where not, listings come out empty."""
        ...

    @property
    def is_distant(self) -> bool:
        """Whether reading is slow enough for copies to be kept on this machine."""
        ...

    @property
    def in_flight(self) -> int:
        """Reads that are worth having under way at a time."""
        ...

    @property
    def poll_seconds(self) -> float:
        """Seconds between two looks at what other runs do."""
        ...

    def read(
        self,
        key: str,
        start: int | None = None,
        stop: int | None = None,
        *,
        most: int = MAX_DOCUMENT_BYTES,
    ) -> bytes | None:
        """Return an object, or the part of it that a slice would be; None if there is none.

        More than ``most`` bytes are :class:`~logitcache.errors.CacheDamaged`; they are not read.
        """
        ...

    def size(self, key: str) -> int | None:
        """Return the bytes of an object, None if there is none."""
        ...

    def stamp(self, key: str) -> tuple[int, int, int] | None:
        """Return what changes when an object is replaced; None where asking takes a request."""
        ...

    def modified(self, key: str) -> float | None:
        """Return when an object was written or touched, by the clock of the place it lies in.

        None if there is none.
        """
        ...

    def digest(self, key: str, *, most: int) -> tuple[int, str] | None:
        """Return size and sha256 of an object; None if there is none.

        More than ``most`` bytes are :class:`~logitcache.errors.CacheDamaged`; they are not read.
        """
        ...

    def write(self, key: str, content: bytes) -> None:
        """Write an object whole and durably; it replaces one of the same key."""
        ...

    def write_new(self, key: str, content: bytes) -> bool:
        """Write an object whole and durably; False where the store says that there is one."""
        ...

    def create(self, key: str, content: bytes) -> bool:
        """Write an object unless there is one; for claims, which nothing depends on."""
        ...

    def touch(self, key: str) -> None:
        """Renew the time of an object if it is there."""
        ...

    def lock(self, key: str, before: bytes, content: bytes) -> int | None:
        """Lock an object while this process runs, and replace its content.

        Returns a descriptor to be closed; None where the object is another one, or cannot be
        locked. Then nothing is written.
        """
        ...

    def is_locked(self, key: str) -> bool | None:
        """Return whether a process of this machine has locked an object; None if not known."""
        ...

    def delete(self, key: str) -> None:
        """Remove an object if it is there."""
        ...

    def remove_folder(self, prefix: str) -> None:
        """Remove a folder if there are such things and nothing is in it."""
        ...

    def names(self, prefix: str) -> list[str]:
        """Return the names of the objects directly below a prefix, sorted."""
        ...

    def keys(self, prefix: str = "") -> Iterable[str]:
        """Return the keys of all objects below a prefix."""
        ...

    def sweep(self) -> list[str]:
        """Remove what writers that are gone left half done; return the keys."""
        ...

    def is_empty(self) -> bool:
        """Return whether there is nothing but what runs that begin have under way."""
        ...

    def bytes_below(self, prefix: str) -> int:
        """Return the bytes of all objects below a prefix."""
        ...

    def free_bytes(self) -> int | None:
        """Return the bytes that can still be written, None where there is no such bound."""
        ...

    def store(self) -> RecordingStore:
        """Return a Zarr store over this location."""
        ...


def locate(url: str | os.PathLike[str] | Location, *, write: bool = False) -> Location:
    """Return the location that a URL names.

    Args:
        url: A path or URL; a location is returned as it is.
        write: Whether something is to be written there.

    Raises:
        UsageError: No URL, an unknown scheme, a missing extra, a place that can only be read, or
            ``memory://`` where there are several processes.
    """
    if not isinstance(url, str | os.PathLike):
        return url
    place = parse_url(url)
    if isinstance(place, Path):
        return LocalLocation(place)
    return RemoteLocation(os.fspath(url), write=write)


def numbers(location: Location, prefix: str) -> list[int]:
    """Return the numbers n of the objects ``<prefix>/<n>.json``, ascending.

    Where nothing can be listed they are looked for: they count from 1 without a gap.

    Raises:
        CacheDamaged: There are more than there can be; a server that has one under every number is
            found out by some fifteen requests.
    """
    if location.lists:
        found = sorted(int(m[1]) for m in map(_NUMBERED.fullmatch, location.names(prefix)) if m)
        if len(found) > MOST_NUMBERED:
            raise _too_many(location, prefix, f"{len(found)} documents")
        return found

    def exists(number: int) -> bool:
        return location.size(f"{prefix}/{number}.json") is not None

    known, first_absent = 0, 1
    while exists(first_absent):
        if first_absent > MOST_NUMBERED:
            raise _too_many(location, prefix, f"a document of number {first_absent}")
        known, first_absent = first_absent, min(2 * first_absent, MOST_NUMBERED + 1)
    while first_absent - known > 1:
        middle = (known + first_absent) // 2
        known, first_absent = (middle, first_absent) if exists(middle) else (known, middle)
    return list(range(1, first_absent))


def _too_many(location: Location, prefix: str, got: str) -> CacheDamaged:
    return CacheDamaged(
        "more numbered documents than there can be",
        where=f"{location}/{prefix}",
        expected=f"at most {MOST_NUMBERED}",
        got=got,
        hint=None
        if location.lists
        else "a server has to answer 404 for what it does not have; check the address",
    )
