"""Committed objects: read whole, compared with their commits, and decoded.

Each object is read once: the bytes whose sha256 is compared with the commit are the bytes that are
decoded. Zarr by itself reads a missing object as fill values, and does not notice the shard of
another unit.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

from logitcache.cache.format.names import sha256
from logitcache.cache.format.shards import BadShardError, ShardLayout, decode_pages, decode_shard
from logitcache.cache.read.diagnose import diagnose
from logitcache.errors import CacheDamaged

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from logitcache.cache.format.ledger import Commit
    from logitcache.cache.format.placement import Placement
    from logitcache.cache.store.base import Location
    from logitcache.encoding.arrays import Encoded

__all__ = ["CommittedObjects"]


class _Copies(Protocol):
    """Copies of shards by the sha256 of their bytes: on this machine, or in memory."""

    def read(self, sha256: str) -> bytes | None: ...

    def keep(self, sha256: str, content: bytes) -> None: ...


class CommittedObjects:
    """Reader of committed shards.

    Args:
        location: The cache.
        copies: Copies of the shards, which are read instead of them; None to keep none.
    """

    def __init__(self, location: Location, copies: _Copies | None = None) -> None:
        self._location = location
        self._copies = copies
        self._checked: dict[str, tuple[int, int, int]] = {}
        self._layouts: dict[str, ShardLayout] = {}

    def read(
        self,
        placement: Placement,
        commits: Sequence[Commit],
        names: Sequence[str],
        others: Collection[Commit] = (),
    ) -> Encoded:
        """Read and decode whole units, several shards at a time.

        Args:
            placement: Placement of the arrays.
            commits: Commits of the units, in the requested order; each must fit the placement.
            names: Names of the arrays.
            others: Commits of the view, to identify a shard of another unit.

        Returns:
            Arrays by name, (len(commits) * rows of a unit, ...); of objects for strings.

        Raises:
            CacheDamaged: An object is not the one that was committed, or cannot be decoded.
        """
        rows = placement.unit_rows
        rows_end = max((commit.rows[1] for commit in commits), default=0)
        for name in names:  # before anything is allocated for them
            self._layout(placement, name, rows_end)
        read: Encoded = {name: placement.empty(name, len(commits) * rows) for name in names}
        pieces = [
            (commit, name, array[at * rows : (at + 1) * rows])
            for name, array in read.items()
            for at, commit in enumerate(commits)
        ]

        def decode(piece: tuple[Commit, str, NDArray[Any]]) -> None:
            commit, name, out = piece
            self._decode(
                placement, commit, name, self.content(placement, commit, name, others), out
            )

        threads = min(len(pieces), self._location.in_flight)
        if threads <= 1:
            for piece in pieces:
                decode(piece)
            return read
        # the pieces are disjoint rows of the arrays, so threads write to them without a lock
        with ThreadPoolExecutor(threads, thread_name_prefix="shards") as pool:
            for _ in pool.map(decode, pieces):  # raises the first error
                pass
        return read

    def decoded(
        self, placement: Placement, commit: Commit, contents: Mapping[str, bytes]
    ) -> Encoded:
        """Decode shards of a unit that :meth:`content` returned, by name of the array.

        Raises:
            CacheDamaged: One cannot be decoded.
        """
        for name in contents:
            self._layout(placement, name, commit.rows[1])
        decoded = {name: placement.empty(name, placement.unit_rows) for name in contents}
        for name, content in contents.items():
            self._decode(placement, commit, name, content, decoded[name])
        return decoded

    def pages(self, placement: Placement, commit: Commit, name: str) -> NDArray[np.uint8]:
        """Read the bytes of a unit of an array of pages, filled up to a whole page.

        Raises:
            CacheDamaged: The shard is not the one that was committed, or cannot be decoded.
        """
        self._layout(placement, name, commit.rows[1])
        content = self.content(placement, commit, name)
        try:
            return decode_pages(content, self._layouts[placement.path(name)])
        except BadShardError as error:
            key = placement.shard_key(name, commit.unit)
            raise CacheDamaged(
                "a shard cannot be decoded", where=f"{self._location}/{key}", got=error
            ) from None

    def content(
        self, placement: Placement, commit: Commit, name: str, others: Collection[Commit] = ()
    ) -> bytes:
        """Return the bytes of a shard; a digest that was compared holds until the file changes.

        Args:
            placement: Placement of the arrays.
            commit: Commit of the unit, which must fit the placement.
            name: Name of the array.
            others: Commits of the view, to identify a shard of another unit.

        Raises:
            CacheDamaged: The object is not the one that was committed.
        """
        path = placement.path(name)
        stored = commit.arrays[path]
        kept = self._copies.read(stored.sha256) if self._copies else None
        if kept is not None:
            return kept
        # looked up before the read: a file that is replaced in between is digested next time
        stamp = self._location.stamp(stored.key)
        content = self._location.read(stored.key, most=placement.max_bytes(name))
        if stamp is not None and self._checked.get(stored.key) == stamp and content is not None:
            return content
        found = None if content is None else (len(content), sha256(content))
        if content is None or found != (stored.bytes, stored.sha256):
            elsewhere = {
                other.arrays[path].sha256: f"view {other.view}, unit {other.unit}, {path}"
                for other in others
                if path in other.arrays
            }
            raise diagnose(self._location, commit, path, found, elsewhere).error(self._location)
        if stamp is not None:
            self._checked[stored.key] = stamp
        if self._copies is not None:
            self._copies.keep(stored.sha256, content)
        return content

    def _decode(
        self, placement: Placement, commit: Commit, name: str, content: bytes, out: NDArray[Any]
    ) -> None:
        try:
            decode_shard(content, self._layouts[placement.path(name)], out)
        except BadShardError as error:
            key = placement.shard_key(name, commit.unit)
            raise CacheDamaged(
                "a shard cannot be decoded", where=f"{self._location}/{key}", got=error
            ) from None

    def _layout(self, placement: Placement, name: str, rows_end: int) -> None:
        path = placement.path(name)
        if path not in self._layouts:
            self._layouts[path] = placement.layout(self._location, name, rows_end)
