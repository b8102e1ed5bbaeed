"""The protocol of a location: objects by key, on a disk, in memory or in an object store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["MAX_DOCUMENT_BYTES", "Location"]

MAX_DOCUMENT_BYTES = 64 * 2**20
"""Largest document, unless a smaller limit is known."""


class Location(Protocol):
    """Interface of the place where a cache is stored; ``str()`` returns it without secrets.

    Keys are POSIX paths relative to the cache; a key that leads out of it is
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
        """Number of concurrent reads at which a location is fastest."""
        ...

    @property
    def poll_seconds(self) -> float:
        """Seconds between two checks of the claims of other runs."""
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

    def read_part(self, key: str, start: int, stop: int) -> bytes | None:
        """Return a part of an object, for many small reads of few objects; None if there is none.

        The object may be kept open, so the part may be that of one that has since been replaced: a
        caller that compares it reads once more by :meth:`read` where it is not as expected.
        """
        ...

    def size(self, key: str) -> int | None:
        """Return the bytes of an object, None if there is none."""
        ...

    def stamp(self, key: str) -> tuple[int, int, int] | None:
        """Return values that change when an object is replaced; None where that takes a request."""
        ...

    def modified(self, key: str) -> float | None:
        """Return when an object was written or touched, by the clock of the store.

        None if there is none.
        """
        ...

    def digest(self, key: str, *, most: int) -> tuple[int, str] | None:
        """Return size and sha256 of an object; None if there is none.

        More than ``most`` bytes are :class:`~logitcache.errors.CacheDamaged`; they are not read.
        """
        ...

    def write(self, key: str, content: bytes) -> None:
        """Write an object atomically and durably; it replaces one of the same key."""
        ...

    def write_new(self, key: str, content: bytes) -> bool:
        """Write an object as :meth:`write` does; False where the store reports that one exists."""
        ...

    def create(self, key: str, content: bytes) -> bool:
        """Write an object unless there is one, perhaps not durably; for claims."""
        ...

    def touch(self, key: str) -> None:
        """Renew the modification time of an object if it exists."""
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
        """Remove an object if it exists."""
        ...

    def remove_folder(self, prefix: str) -> None:
        """Remove a folder if it is empty, where a location has folders."""
        ...

    def names(self, prefix: str) -> list[str]:
        """Return the names of the objects directly below a prefix, sorted."""
        ...

    def keys(self, prefix: str = "") -> Iterable[str]:
        """Return the keys of all objects below a prefix."""
        ...

    def sweep(self) -> list[str]:
        """Remove the temporary files of writers that have ended; return their keys."""
        ...

    def is_empty(self) -> bool:
        """Return whether there is nothing but claims and temporary files."""
        ...

    def bytes_below(self, prefix: str) -> int:
        """Return the bytes of all objects below a prefix."""
        ...

    def free_bytes(self) -> int | None:
        """Return the bytes that can still be written; None where that is not known."""
        ...
