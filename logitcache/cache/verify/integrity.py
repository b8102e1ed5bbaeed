"""Verification of a cache: every byte against its commit, and every shard decoded.

Every object of every unit is compared with its commit, every commit with its ledger, every ledger
with its revision, the manifest and every ``zarr.json`` with the sealed ones. Files that no document
lists are orphans: they are reported, and are never an error.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from logitcache.cache.format.manifest import check_revision, read_manifest
from logitcache.cache.format.names import content_sha256, sha256
from logitcache.cache.format.shards import (
    BadShardError,
    ShardLayout,
    decode_pages,
    decode_shard,
)
from logitcache.cache.read.diagnose import Cause, Fault, check_header, diagnose
from logitcache.cache.read.exclusions import withdrawal_faults
from logitcache.cache.store.open import locate
from logitcache.cache.verify.inventory import Expected, View, expected_views
from logitcache.cache.verify.orphans import Orphan, find_orphans
from logitcache.cache.verify.restore import recovered_manifest
from logitcache.cache.verify.row_index import index_faults
from logitcache.errors import CacheDamaged, CacheError, StorageError, UnsupportedFormat
from logitcache.platforms import available_processors
from logitcache.views.spec import parse_view

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from numpy.typing import NDArray

    from logitcache.cache.format.ledger import Commit, StoredArray
    from logitcache.cache.format.manifest import Manifest
    from logitcache.cache.format.placement import Placement
    from logitcache.cache.store.base import Location

__all__ = ["VerifyProgress", "VerifyReport", "verify"]


@dataclass(frozen=True)
class VerifyProgress:
    """Progress of a verification in bytes; the total grows while ledgers are read."""

    done: int
    total: int


@dataclass(frozen=True)
class VerifyReport:
    """What a verification found.

    Attributes:
        url: The cache.
        revision: Number of the current revision; None before the first.
        revision_sha256: Its sha256, which determines every sealed byte.
        quick: Whether only sizes and headers were checked.
        units: Number of committed units.
        objects: Number of their shards.
        bytes: Total size of the shards.
        seconds: Duration.
        faults: Damage, in the order of groups, views and units.
        orphans: Files that no document lists.
    """

    url: str
    revision: int | None
    revision_sha256: str | None
    quick: bool
    units: int = 0
    objects: int = 0
    bytes: int = 0
    seconds: float = 0.0
    faults: tuple[Fault, ...] = ()
    orphans: tuple[Orphan, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether there is no damage."""
        return not self.faults

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {
            **asdict(self),
            "ok": self.ok,
            "faults": [fault.to_json() for fault in self.faults],
            "orphans": [asdict(orphan) for orphan in self.orphans],
        }


def verify(
    url: str | os.PathLike[str] | Location,
    *,
    quick: bool = False,
    revision: str | None = None,
    threads: int | None = None,
    on_progress: Callable[[VerifyProgress], None] | None = None,
) -> VerifyReport:
    """Check a cache, sealed or not.

    Args:
        url: The cache.
        quick: Whether to check only sizes and headers of shards; documents are always digested.
        revision: sha256 of the revision that it must have, or the first 12 digits or more.
        threads: Threads that read; by default as many as the processors, or the store, can use.
        on_progress: Called after every shard.

    Raises:
        CacheError: There is no cache.
        UnsupportedFormat: It has a newer format.
        CacheDamaged: It has another revision.
        StorageError: A server fails, or does not support Range requests where ``quick`` needs them.
    """
    location = locate(url)
    started = time.monotonic()
    manifest, faults = _manifest(location)
    if manifest is None:
        return VerifyReport(str(location), None, None, quick, faults=tuple(faults))
    check_revision(manifest, revision, location)
    expected = expected_views(location, manifest)
    checker = _Checker(location, expected, quick=quick, on_progress=on_progress)
    wanted = threads or max(location.in_flight, available_processors())
    with ThreadPoolExecutor(wanted) as pool:
        sizes = [0] * len(expected.views)
        if on_progress is not None:  # all are added up first, so that the total does not grow
            sizes = [*pool.map(View.sealed_bytes, expected.views)]
        checker.total = sum(sizes)
        for view, size in zip(expected.views, sizes, strict=True):
            checker.check(view, pool, size)
    known = {fault.key for fault in expected.faults}
    return VerifyReport(
        url=str(location),
        revision=manifest.revision.number if manifest.revision else None,
        revision_sha256=manifest.revision.sha256 if manifest.revision else None,
        quick=quick,
        units=checker.units,
        objects=checker.objects,
        bytes=checker.bytes,
        seconds=time.monotonic() - started,
        faults=(
            *faults,
            *_recipe_faults(manifest),
            *expected.faults,
            *(f for f in withdrawal_faults(location) if f.key not in known),
            *index_faults(location, manifest),
            *checker.faults,
        ),
        orphans=tuple(find_orphans(location, manifest, checker.named)),
    )


def _manifest(location: Location) -> tuple[Manifest | None, list[Fault]]:
    """Read the manifest; where it is damaged, return the sealed one and the fault."""
    try:
        return read_manifest(location), []
    except UnsupportedFormat:
        raise
    except CacheError as error:
        if not location.names("revisions") and next(iter(location.keys("commits")), None) is None:
            raise
        return recovered_manifest(location), [Fault(Cause.MANIFEST, error.brief, "zarr.json")]


def _recipe_faults(manifest: Manifest) -> list[Fault]:
    """Return the faults of recipes that cannot be rendered."""
    faults = []
    for view_id, recipe in manifest.views.items():
        try:
            parse_view(recipe, f"view {view_id}")
        except CacheError as error:
            detail = f"view {view_id}: {error.brief}"
            faults.append(Fault(Cause.MANIFEST, detail, "zarr.json", view=view_id))
    return faults


@dataclass
class _Checker:
    """Compares the objects of one view after another with their commits."""

    location: Location
    expected: Expected
    quick: bool
    on_progress: Callable[[VerifyProgress], None] | None
    units: int = 0
    objects: int = 0
    bytes: int = 0
    total: int = 0
    faults: list[Fault] = field(default_factory=list)
    named: set[str] = field(default_factory=set)
    _layouts: dict[str, ShardLayout | None] = field(default_factory=dict)
    _elsewhere: dict[str, dict[str, str]] = field(default_factory=dict)
    _buffers: threading.local = field(default_factory=threading.local)

    def check(self, view: View, pool: ThreadPoolExecutor, counted: int) -> None:
        """Check every object of one view, of which so many bytes are part of the total already."""
        commits, faults = view.read()
        self.faults += faults
        self.units += len(commits)
        tasks = [(view, commit, path) for commit in commits for path in commit.arrays]
        self.total += sum(commit.arrays[path].bytes for _, commit, path in tasks) - counted
        self.named |= {commit.arrays[path].key for _, commit, path in tasks}
        # threads examine the objects; counts and faults change in this one alone, in order
        for (_, commit, path), found in zip(tasks, pool.map(self._examine, tasks), strict=True):
            stored = commit.arrays[path]
            self.objects += 1
            self.bytes += stored.bytes
            if found is not None:
                self.faults.append(self._explained(found, commit, path))
            if self.on_progress is not None:
                self.on_progress(VerifyProgress(self.bytes, self.total))

    def _examine(self, task: tuple[View, Commit, str]) -> _Suspect | None:
        """Return how an object differs from its commit; None if it does not."""
        view, commit, path = task
        stored = commit.arrays[path]
        try:
            if not self.quick:
                return self._decoded(view, path, stored)
            same_size = self.location.size(stored.key) == stored.bytes
            if same_size and check_header(self.location, path, stored) is None:
                return None
            name = path.removeprefix(f"{view.group}/")
            found = self.location.digest(stored.key, most=view.placement.max_bytes(name))
            return None if found == (stored.bytes, stored.sha256) else _Suspect(found)
        except CacheDamaged as error:
            return _Suspect(None, error)
        except StorageError as error:
            if self.location.is_distant:
                raise  # the failure of a server is no evidence of damaged objects
            return _Suspect(None, error)

    def _decoded(self, view: View, path: str, stored: StoredArray) -> _Suspect | None:
        """Compare a shard with its commit, and decode it as a reader does."""
        placement, name = view.placement, path.removeprefix(f"{view.group}/")
        content = self.location.read(stored.key, most=placement.max_bytes(name))
        found = None if content is None else (len(content), sha256(content))
        if content is None or found != (stored.bytes, stored.sha256):
            return _Suspect(found)
        layout = self._layout(placement, name)
        if layout is None:
            return None  # the metadata of the array are a fault of their own
        try:
            if placement.page(name):
                rows = decode_pages(content, layout)
            else:
                rows = self._empty(placement, name)
                decode_shard(content, layout, rows)
        except BadShardError as error:
            return _Suspect(found, CacheDamaged("the shard cannot be decoded", got=error))
        if content_sha256(rows) != stored.content_sha256:
            detail = "the decoded rows have another digest than the committed ones"
            return _Suspect(found, CacheDamaged(detail))
        fault = view.fault_of({name: rows})
        return None if fault is None else _Suspect(found, CacheDamaged(fault))

    def _empty(self, placement: Placement, name: str) -> NDArray[Any]:
        """Return an array for the rows of a unit: the last one of this thread if it fits.

        The page faults of a new array of some 60 MB take as long as its digest.
        """
        spec, last = placement.specs[name], getattr(self._buffers, "rows", None)
        shape = None if spec is None else (placement.unit_rows, *spec.shape)
        if spec is None or last is None or (last.shape, last.dtype) != (shape, spec.dtype):
            last = placement.empty(name, placement.unit_rows)
            self._buffers.rows = last
        found: NDArray[Any] = last
        return found

    def _layout(self, placement: Placement, name: str) -> ShardLayout | None:
        path = placement.path(name)
        if path not in self._layouts:  # without a lock: two threads may read the same metadata
            try:
                self._layouts[path] = placement.layout(self.location, name)
            except CacheDamaged:
                self._layouts[path] = None
        return self._layouts[path]

    def _explained(self, suspect: _Suspect, commit: Commit, path: str) -> Fault:
        if suspect.error is None:
            elsewhere = self._shards_of(commit.group)
            return diagnose(self.location, commit, path, suspect.found, elsewhere)
        return Fault(
            cause=Cause.UNREADABLE,
            detail=suspect.error.brief,
            key=commit.arrays[path].key,
            group=commit.group,
            view=commit.view,
            unit=commit.unit,
            array=path.rpartition("/")[2],
            recompute=True,
        )

    def _shards_of(self, group: str) -> dict[str, str]:
        """Return the units of the committed shards of a group, by sha256; read once per group."""
        if group not in self._elsewhere:
            self._elsewhere[group] = {
                stored.sha256: f"view {view.view}, unit {commit.unit}, {path}"
                for view in self.expected.views
                if view.group == group
                for commit in view.read()[0]
                for path, stored in commit.arrays.items()
            }
        return self._elsewhere[group]


@dataclass(frozen=True)
class _Suspect:
    """An object that differs from its commit: its size and sha256, or the error of reading it."""

    found: tuple[int, str] | None
    error: StorageError | CacheDamaged | None = None
