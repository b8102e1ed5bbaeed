"""A folder that counts what is read from it and written to it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from logitcache.cache.store.local import LocalLocation

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["CountedLocation"]


class CountedLocation(LocalLocation):
    """A folder that counts the bytes of objects that are read and written; claims are left out.

    Attributes:
        bytes_read: Bytes that were read, by key.
        bytes_written: Bytes that were written, by key.
        reads: How often an object was read, by key.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.bytes_read, self.bytes_written = Counter[str](), Counter[str]()
        self.reads = Counter[str]()

    def read(self, key: str, *arguments: Any, **options: Any) -> bytes | None:
        content = super().read(key, *arguments, **options)
        self._count(key, None if content is None else len(content))
        return content

    def read_part(self, key: str, start: int, stop: int) -> bytes | None:
        part = super().read_part(key, start, stop)
        self._count(key, None if part is None else len(part))
        return part

    def digest(self, key: str, *, most: int) -> tuple[int, str] | None:
        found = super().digest(key, most=most)
        self._count(key, None if found is None else found[0])
        return found

    def write(self, key: str, content: bytes | memoryview) -> None:
        super().write(key, content)
        self.bytes_written[key] += len(content)

    @property
    def shard_reads(self) -> dict[str, int]:
        """How often each shard was read, by key."""
        return {key: count for key, count in self.reads.items() if "/c/" in key}

    def _count(self, key: str, size: int | None) -> None:
        if size is not None and not key.startswith("claims/"):
            self.bytes_read[key] += size
            self.reads[key] += 1
