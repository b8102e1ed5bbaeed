"""A Zarr store on top of a location, for writing."""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING

from zarr.abc.store import OffsetByteRequest, RangeByteRequest, Store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

    from logitcache.cache.store.base import Location

__all__ = ["RecordingStore"]


class RecordingStore(Store):
    """A Zarr store that writes durably and remembers what it wrote.

    Attributes:
        written: By key, the size and sha256 of every object written since the last reset.
        replacing: Keys that read as absent while they are written whole: zarr would merge a shard
            into what an interrupted run left, and deleting it first would open a gap.
    """

    supports_writes = True
    supports_deletes = True
    supports_listing = True

    def __init__(self, location: Location) -> None:
        super().__init__(read_only=False)
        self._location = location
        self.written: dict[str, tuple[int, str]] = {}
        self.replacing: set[str] = set()

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = Store.__hash__

    # zarr's event loop must not block: the location's calls run in threads
    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Read an object or a part of it."""
        content = await asyncio.to_thread(self._read, key, *_slice(byte_range))
        return None if content is None else prototype.buffer.from_bytes(content)

    async def get_partial_values(
        self,
        prototype: BufferPrototype,
        key_ranges: Iterable[tuple[str, ByteRequest | None]],
    ) -> list[Buffer | None]:
        """Read parts of objects."""
        return [await self.get(key, prototype, part) for key, part in key_ranges]

    async def exists(self, key: str) -> bool:
        """Return whether there is an object."""
        return await asyncio.to_thread(self._location.size, key) is not None

    async def list(self) -> AsyncIterator[str]:
        """Yield every key."""
        async for key in self.list_prefix(""):
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Yield every key below a prefix."""
        for key in await asyncio.to_thread(lambda: list(self._location.keys(prefix))):
            yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Yield the names directly below a prefix."""
        skipped = len(prefix.rstrip("/")) + 1 if prefix else 0
        names = {key[skipped:].partition("/")[0] async for key in self.list_prefix(prefix)}
        for name in sorted(names):
            yield name

    def with_read_only(self, read_only: bool = False) -> RecordingStore:
        """Return a store with the same record, as zarr requires."""
        sibling = RecordingStore(self._location)
        sibling._read_only = read_only
        sibling.written, sibling.replacing = self.written, self.replacing
        return sibling

    def _read(self, key: str, start: int | None, stop: int | None) -> bytes | None:
        return None if key in self.replacing else self._location.read(key, start, stop)

    async def set(self, key: str, value: Buffer) -> None:
        """Write an object through the location."""
        self._check_writable()
        content = value.to_bytes()
        await asyncio.to_thread(self._location.write, key, content)
        self.written[key] = (len(content), hashlib.sha256(content).hexdigest())

    async def delete(self, key: str) -> None:
        """Remove an object if it exists."""
        self._check_writable()
        await asyncio.to_thread(self._location.delete, key)


def _slice(part: ByteRequest | None) -> tuple[int | None, int | None]:
    """Return a part of an object as the bounds of a slice."""
    if part is None:
        return None, None
    if isinstance(part, RangeByteRequest):
        return part.start, part.end
    if isinstance(part, OffsetByteRequest):
        return part.offset, None
    return -part.suffix, None
