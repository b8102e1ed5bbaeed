"""Committed objects: read whole, compared with their commits, and decoded.

Each object is read once: the bytes whose sha256 is compared with the commit are the bytes that are
decoded. Zarr alone takes a missing or empty object for fill, and a shard of another place for its
own.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from logitcache.cache.arrays import read_array
from logitcache.cache.faults import diagnose
from logitcache.cache.format import sha256
from logitcache.cache.shards import BadShardError, ShardLayout, decode_shard, shard_layout
from logitcache.cache.store import CheckedStore
from logitcache.errors import CacheDamaged

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from logitcache.cache.copies import LocalCopies
    from logitcache.cache.ledger import Commit, Ledger
    from logitcache.cache.location import Location
    from logitcache.encoding.arrays import ArraySpec

__all__ = ["CommittedObjects", "Piece"]


@dataclass(frozen=True)
class Piece:
    """One array's shard of one unit, and where its rows go.

    Attributes:
        commit: The commit of the unit.
        path: Path of the array.
        spec: What a row looks like.
        slot: Which view; None where there are none.
        out: (rows of the unit, ...), C order.
    """

    commit: Commit
    path: str
    spec: ArraySpec
    slot: int | None
    out: NDArray[Any]


class CommittedObjects:
    """Reads what is committed.

    Args:
        location: The cache.
        copies: Where shards of a distant cache are kept nearer; None to keep none.
    """

    def __init__(self, location: Location, copies: LocalCopies | None = None) -> None:
        self._location = location
        self._copies = copies
        self._checked: dict[str, tuple[int, int, int]] = {}
        self._layouts: dict[str, ShardLayout | None] = {}

    def load(self, commit: Commit, path: str, ledger: Ledger) -> bytes:
        """Return the bytes of an array's shard.

        They are digested unless they were before and the file has not been touched since.

        Raises:
            CacheDamaged: They are not those that were committed.
        """
        if path not in commit.arrays:
            raise CacheDamaged("a commit lacks an array", where=self._location, got=path)
        stored = commit.arrays[path]
        kept = self._copies.read(stored.sha256) if self._copies else None
        if kept is not None:
            return kept
        stamp = self._location.stamp(stored.key)
        content = self._location.read(stored.key)
        if stamp is not None and self._checked.get(stored.key) == stamp and content is not None:
            return content
        found = None if content is None else (len(content), sha256(content))
        if content is None or found != (stored.bytes, stored.sha256):
            elsewhere = {
                other.arrays[path].sha256: f"view {other.view}, unit {other.unit}, {path}"
                for other in ledger.commits.values()
            }
            raise diagnose(self._location, commit, path, found, elsewhere).error(self._location)
        if stamp is not None:
            self._checked[stored.key] = stamp
        if self._copies is not None:
            self._copies.keep(stored.sha256, content)
        return content

    def store(self, ledger: Ledger, units: Iterable[int], paths: Iterable[str]) -> CheckedStore:
        """Return a store that zarr may read these arrays from: every shard is compared first."""
        shards = {
            commit.arrays[path].key: partial(self.load, commit, path, ledger)
            for commit in (ledger.commits[unit] for unit in units)
            for path in paths
            if path in commit.arrays
        }
        return CheckedStore(self._location, shards)

    def read(self, pieces: Sequence[Piece], ledger: Ledger) -> None:
        """Read and decode shards, several at a time.

        Raises:
            CacheDamaged: An object is not the one that was committed, or cannot be decoded.
        """
        threads = min(len(pieces), self._location.in_flight)
        if threads <= 1:
            for piece in pieces:
                self._decode(piece, ledger)
            return
        with ThreadPoolExecutor(threads, thread_name_prefix="shards") as pool:
            one_each = {piece.path: piece for piece in pieces}
            list(pool.map(self._layout, one_each.values()))  # so that no document is read twice
            for _ in pool.map(lambda piece: self._decode(piece, ledger), pieces):
                pass

    def _decode(self, piece: Piece, ledger: Ledger) -> None:
        layout = self._layout(piece)
        if layout is None:
            self._decode_by_zarr(piece, ledger)
            return
        content = self.load(piece.commit, piece.path, ledger)
        try:
            decode_shard(content, layout, piece.out)
        except BadShardError as error:
            key = piece.commit.arrays[piece.path].key
            raise CacheDamaged(
                "a shard cannot be decoded", where=f"{self._location}/{key}", got=error
            ) from None

    def _decode_by_zarr(self, piece: Piece, ledger: Ledger) -> None:
        rows = slice(*piece.commit.rows)
        store = self.store(ledger, [piece.commit.unit], [piece.path])
        piece.out[...] = read_array(store, piece.path, rows, piece.spec, piece.slot)

    def _layout(self, piece: Piece) -> ShardLayout | None:
        if piece.path not in self._layouts:
            document = self._location.read(f"{piece.path}/zarr.json") or b""
            found = shard_layout(document, piece.spec, 1 if piece.slot is None else 2)
            fits = found is not None and found.rows == len(piece.out)
            self._layouts[piece.path] = found if fits else None
        return self._layouts[piece.path]
