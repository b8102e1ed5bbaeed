"""Copying of a revision of a cache from one place to another: push and pull.

Only what is missing moves: shards with their commits first, then documents, and the root last. So
a process may be killed anywhere, and a concurrent reader finds the old revision or the new one.
"""

from __future__ import annotations

import threading
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from logitcache.cache.format.envelope import signature_key
from logitcache.cache.format.names import (
    INDEX,
    canonical_json,
    commit_key,
    copies_key,
    revision_key,
    sha256,
)
from logitcache.cache.read.signature import signed_revision
from logitcache.cache.store.open import is_within, locate, locate_receiver
from logitcache.cache.write.claims import MANIFEST, Claims
from logitcache.errors import CacheDamaged, Interrupted, StorageError, UsageError
from logitcache.share.destination import MARKER, Destination
from logitcache.share.snapshot import part_of, read_snapshot

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Collection, Iterator

    from logitcache.cache.format.ledger import Commit, Ledger, LedgerPointer, StoredArray
    from logitcache.cache.store.base import Location
    from logitcache.cache.write.claims import Wait
    from logitcache.share.snapshot import Snapshot

__all__ = ["Transfer", "copy_cache", "pull", "push"]

_MOST_SHARD_BYTES = 2**30
_MOST_LEDGER_BYTES = 2**27
MEMORY_BYTES = 2**30
"""Largest sum of the shards that are in memory at the same time."""


@dataclass(frozen=True)
class Transfer:
    """What a push or pull has moved.

    Attributes:
        source: The cache, without credentials.
        destination: The place that it was copied to, without credentials.
        number: Number of the revision that the destination has now.
        revision: Its sha256.
        objects: Shards, ledgers and other documents that were written.
        bytes: Their size.
        present: Shards that the destination had already.
        present_bytes: Their size.
    """

    source: str
    destination: str
    number: int
    revision: str
    objects: int
    bytes: int
    present: int
    present_bytes: int

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


def push(
    cache: str | os.PathLike[str],
    url: str | os.PathLike[str],
    *,
    revision: str | None = None,
    views: int | None = None,
    teachers: Collection[str] = (),
    signed_by: str | os.PathLike[str] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    on_wait: Callable[[Wait], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Transfer:
    """Copy a revision of a cache to a folder or object store; only what is missing is written.

    Args:
        cache: A sealed cache: a folder or URL.
        url: A new place, or one that holds an earlier revision of the same cache.
        revision: sha256 of the revision, or at least 12 digits of it; the current one by default.
        views: Number of views to copy, the first ones; all by default.
        teachers: Names of the teachers to copy; all if empty.
        signed_by: File with the public key that has to have signed the current revision.
        on_progress: Called with the bytes of shards that are done, and with those of all.
        on_wait: Called while another process holds the manifest lock of the destination.
        should_stop: Checked after every unit; True stops the transfer, which can be resumed.

    Raises:
        CacheUnsealed: The cache was never sealed.
        CacheDamaged: An object is not the one that was sealed, or there is no such revision.
        CacheError: The destination holds something else than an earlier revision.
        SignatureError: The source is not signed by the key, or differs from what was signed.
        UsageError: No such teacher, not as many views, a URL that cannot be written to, or a
            place in the folder of the source.
        Interrupted: It was stopped.
    """
    source, target = locate(cache), locate_receiver(url)
    if is_within(target, source):
        raise UsageError(
            "the destination is the source, or in its folder",
            where=target,
            expected=f"a folder or URL outside of {source}",
        )
    if signed_by is not None:
        revision = signed_revision(source, signed_by, revision)
    snapshot = read_snapshot(source, revision)
    if views is not None or teachers:
        snapshot = part_of(snapshot, views, teachers)
    with Claims(target, on_wait=on_wait).exclusive(MANIFEST):
        return copy_cache(snapshot, target, on_progress or (lambda done, total: None), should_stop)


def pull(url: str | os.PathLike[str], cache: str | os.PathLike[str], **options: Any) -> Transfer:
    """Copy a revision of a cache from a folder, object store or web server.

    Args:
        url: A sealed cache: a folder or URL.
        cache: A new place, or one that holds an earlier revision of the same cache.
        **options: As for :func:`push`, with the same errors.
    """
    return push(url, cache, **options)


def copy_cache(
    snapshot: Snapshot,
    location: Location,
    on_progress: Callable[[int, int], None],
    should_stop: Callable[[], bool],
) -> Transfer:
    """Copy a revision to a location whose manifest lock is held."""
    destination = Destination(location, snapshot)
    copy = _Copy(snapshot, destination, on_progress, should_stop)
    copy.check_space()
    destination.start(snapshot)
    copy.units()
    copy.documents()
    return Transfer(
        source=str(snapshot.location),
        destination=str(location),
        number=snapshot.pointer.number,
        revision=snapshot.pointer.sha256,
        objects=copy.objects,
        bytes=copy.bytes,
        present=copy.present,
        present_bytes=copy.present_bytes,
    )


class _Copy:
    """One transfer, with its counts.

    Args:
        snapshot: The revision.
        destination: The place that receives it.
        on_progress: Called with the bytes that are done, and with those of all.
        should_stop: Checked after every unit.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        destination: Destination,
        on_progress: Callable[[int, int], None],
        should_stop: Callable[[], bool],
    ) -> None:
        self._snapshot, self._destination = snapshot, destination
        self._from, self._to = snapshot.location, destination.location
        self._on_progress, self._should_stop = on_progress, should_stop
        self._memory = _Budget(MEMORY_BYTES)
        self._lock = threading.Lock()
        self._total = self._done = 0
        self.objects = self.bytes = self.present = self.present_bytes = 0

    def check_space(self) -> None:
        """Add up all shards, and compare those that are missing with the free space.

        Raises:
            StorageError: They do not fit.
        """
        missing, free = 0, self._to.free_bytes()
        for name, ledger in self._snapshot.ledgers():
            # a store whose space is not known is not asked what it has
            there = set() if free is None else self._destination.present_units(name, ledger)
            for unit, commit in ledger.commits.items():
                size = sum(stored.bytes for stored in commit.arrays.values())
                self._total += size
                missing += size * (unit not in there)
        if free is not None and missing > free:
            raise StorageError(
                "the destination has too little space",
                where=self._to,
                expected=f"{missing} bytes",
                got=f"{free} bytes",
                hint="free some space, or copy a part: --views N, --teacher NAME",
            )

    def units(self) -> None:
        """Copy all shards that are missing, several at a time, each unit's commit after them."""
        threads = max(self._from.in_flight, self._to.in_flight)
        with ThreadPoolExecutor(threads, thread_name_prefix="copy") as pool:
            pending: set[Future[None]] = set()
            try:
                for name, ledger in self._snapshot.ledgers():
                    for commit in self._missing(name, ledger):
                        pending.add(pool.submit(self._unit, commit))
                        if len(pending) >= 2 * threads:
                            pending = self._settled(pending, FIRST_COMPLETED)
                while pending:
                    pending = self._settled(pending, FIRST_COMPLETED)
            finally:
                for future in pending:
                    future.cancel()
        self._on_progress(self._done, self._total)  # units that were there are counted since

    def documents(self) -> None:
        """Write ledgers and documents, then the revision, and the root last."""
        snapshot, number = self._snapshot, self._snapshot.pointer.number
        documents = dict(snapshot.documents)
        if snapshot.copies is not None:
            documents[copies_key(number)] = snapshot.copies
        self._destination.declare_views(snapshot)
        with ThreadPoolExecutor(self._to.in_flight, thread_name_prefix="copy") as pool:
            list(pool.map(self._ledger, snapshot.revision.ledgers.values()))
            list(pool.map(self._document, documents.keys(), documents.values()))
        self._document(revision_key(number), snapshot.content)
        index = snapshot.index()
        if index is not None:
            self._document(INDEX, index)
        if snapshot.signatures is not None:
            self._document(signature_key(number), snapshot.signatures)
        self._document("zarr.json", snapshot.root)
        self._to.delete(MARKER)

    def _missing(self, name: str, ledger: Ledger) -> Iterator[Commit]:
        """Yield the commits of the units that have to be copied; count the others."""
        there = self._destination.present_units(name, ledger)
        for unit, commit in ledger.commits.items():
            if unit not in there:
                yield commit
                continue
            for stored in commit.arrays.values():
                self._count_present(stored)

    def _settled(self, pending: set[Future[None]], when: str) -> set[Future[None]]:
        """Wait for a unit, raise its error if it failed, and return those that are not done."""
        done, left = wait(pending, return_when=when)
        for future in done:
            future.result()
        self._on_progress(self._done, self._total)
        if self._should_stop():
            raise Interrupted(
                "stopped", kept=True, hint="run the same command again to copy the rest"
            )
        return left

    def _unit(self, commit: Commit) -> None:
        """Copy one unit."""
        for stored in commit.arrays.values():
            if self._destination.has_shard(stored):
                self._count_present(stored)
                continue
            with self._memory.held(min(stored.bytes, _MOST_SHARD_BYTES)):
                content = self._from.read(stored.key, most=min(stored.bytes, _MOST_SHARD_BYTES))
                content = _checked(content, stored.sha256, self._from, stored.key)
                self._write(stored.key, content)
                with self._lock:
                    self._done += stored.bytes
        key = commit_key(commit.group, commit.view, commit.unit)
        self._to.write(key, canonical_json(commit.to_json()))

    def _ledger(self, pointer: LedgerPointer) -> None:
        content = self._from.read(pointer.key, most=_MOST_LEDGER_BYTES)
        self._document(pointer.key, _checked(content, pointer.sha256, self._from, pointer.key))

    def _document(self, key: str, content: bytes) -> None:
        if not self._destination.has_document(key, content):
            self._write(key, content)

    def _write(self, key: str, content: bytes) -> None:
        self._to.write(key, content)
        with self._lock:
            self.objects += 1
            self.bytes += len(content)

    def _count_present(self, stored: StoredArray) -> None:
        with self._lock:
            self.present += 1
            self.present_bytes += stored.bytes
            self._done += stored.bytes


class _Budget:
    """Bytes that may be in memory at the same time; one object may be larger than all of them."""

    def __init__(self, most: int) -> None:
        self._left, self._most = most, most
        self._changed = threading.Condition()

    @contextmanager
    def held(self, size: int) -> Iterator[None]:
        """Wait until there is room for so many bytes, and hold it for the length of a ``with``."""
        size = min(size, self._most)
        with self._changed:
            self._changed.wait_for(lambda: self._left >= size)
            self._left -= size
        try:
            yield
        finally:
            with self._changed:
                self._left += size
                self._changed.notify_all()


def _checked(content: bytes | None, digest: str, location: Location, key: str) -> bytes:
    """Return the content of an object of the source, compared with its digest."""
    found = None if content is None else sha256(content)
    if content is None or found != digest:
        raise CacheDamaged(
            "an object of the source is " + ("missing" if found is None else "damaged"),
            where=f"{location}/{key}",
            expected=f"sha256 {digest}",
            got=None if found is None else f"sha256 {found}",
        )
    return content
