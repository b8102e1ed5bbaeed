"""Zarr's view of a location: what zarr reads and writes goes through our own hands."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from zarr.abc.store import OffsetByteRequest, RangeByteRequest, Store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping

    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

    from logitcache.cache.location import LocalLocation

__all__ = ["CheckedStore"]


class CheckedStore(Store):
    """A Zarr store that only reads, and reads shards whole through a check.

    Args:
        location: Where documents lie.
        shards: By key: what returns the bytes of a shard, or raises.
    """

    supports_writes = False
    supports_deletes = False
    supports_listing = False

    def __init__(self, location: LocalLocation, shards: Mapping[str, Callable[[], bytes]]) -> None:
        super().__init__(read_only=True)
        self._location = location
        self._shards = shards
        self._last: tuple[str, bytes] | None = None  # zarr asks for an index, then for each chunk

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = Store.__hash__

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Read an object."""
        content = await asyncio.to_thread(self._content, key)
        if content is None:
            return None
        start, stop = _slice(byte_range)
        return prototype.buffer.from_bytes(content[start:stop])

    def _content(self, key: str) -> bytes | None:
        if key not in self._shards:
            return self._location.read(key) if key.endswith("zarr.json") else None
        last = self._last
        if last is None or last[0] != key:
            last = self._last = (key, self._shards[key]())
        return last[1]

    async def get_partial_values(
        self,
        prototype: BufferPrototype,
        key_ranges: Iterable[tuple[str, ByteRequest | None]],
    ) -> list[Buffer | None]:
        """Read parts of objects."""
        return [await self.get(key, prototype, part) for key, part in key_ranges]

    async def exists(self, key: str) -> bool:
        """Return whether there is an object."""
        return key in self._shards or self._location.size(key) is not None

    async def set(self, key: str, value: Buffer) -> None:
        """Refuse to write."""
        raise NotImplementedError(key)

    async def delete(self, key: str) -> None:
        """Refuse to delete."""
        raise NotImplementedError(key)

    def list(self) -> AsyncIterator[str]:
        """Refuse to list."""
        raise NotImplementedError

    def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Refuse to list."""
        raise NotImplementedError(prefix)

    def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Refuse to list."""
        raise NotImplementedError(prefix)


def _slice(part: ByteRequest | None) -> tuple[int | None, int | None]:
    """Return a part of an object as the bounds of a slice."""
    if part is None:
        return None, None
    if isinstance(part, RangeByteRequest):
        return part.start, part.end
    if isinstance(part, OffsetByteRequest):
        return part.offset, None
    return -part.suffix, None
