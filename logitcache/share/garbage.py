"""Removal of what no kept revision of a cache needs: dropped outputs, old ledgers and revisions.

An object is removed only if all of this holds:

* It has the key of a shard, commit, ledger, revision, signature or group of a cache. Other files,
  such as a README, are never touched, nor are exclusions and view fingerprints.
* No kept revision names it, and it does not belong to a declared group and view: units that a run
  has still to commit keep their shards, however old those are.
* It is older than the grace period, also when it is looked at again just before it is removed.
* This process still holds the lock of the manifest, and nobody else had a claim when it began.

A reader of an old revision keeps its objects for the grace period after that revision was replaced.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from logitcache.cache.format.data_arrays import DATA, VIEW_ARRAYS, data_placements
from logitcache.cache.format.documents import numbers, parse_json
from logitcache.cache.format.groups import group_names, read_group
from logitcache.cache.format.ledger import parse_ledger, parse_revision, read_revision
from logitcache.cache.format.manifest import read_manifest
from logitcache.cache.format.names import revision_key
from logitcache.cache.format.placement import parents_of
from logitcache.cache.store.open import locate
from logitcache.cache.write.claims import CLAIMS, MANIFEST, TRIAL, Claims, is_left, read_holder
from logitcache.cache.write.drop import finish_drops
from logitcache.cache.write.writer import CacheWriter
from logitcache.errors import CacheError, StorageError, UsageError

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator

    from logitcache.cache.format.ledger import Revision
    from logitcache.cache.format.manifest import Manifest
    from logitcache.cache.format.placement import Placement
    from logitcache.cache.store.base import Location
    from logitcache.cache.write.claims import Wait

__all__ = ["GRACE_SECONDS", "Garbage", "GarbageReport", "collect_garbage"]

GRACE_SECONDS = 24 * 3600.0
_LOCK_SECONDS = 1.0  # between two looks at the own lock
_NUMBERED = re.compile(r"(?:revisions|signatures)/([1-9]\d{0,15})(?:\.copies)?\.json")
_LEDGER = re.compile(r"ledger/.+\.([1-9]\d{0,15})\.json")
_ORDER = ("revisions/", "signatures/", "ledger/", "commits/")


@dataclass(frozen=True)
class Garbage:
    """An object that no kept revision needs.

    Attributes:
        key: Its key.
        bytes: Its size.
    """

    key: str
    bytes: int


@dataclass(frozen=True)
class GarbageReport:
    """What a collection found.

    Attributes:
        cache: Location of the cache.
        removed: Whether the objects were removed; otherwise they were only listed.
        kept: Numbers of the revisions that are kept.
        objects: Objects that no kept revision needs, and that are old enough.
        young: Number of further ones that are younger than the grace period.
        other: Number of files that are not part of a cache; they are never removed.
    """

    cache: str
    removed: bool
    kept: tuple[int, ...]
    objects: tuple[Garbage, ...]
    young: int
    other: int

    @property
    def bytes(self) -> int:
        """Total size of the objects."""
        return sum(found.bytes for found in self.objects)

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {
            "cache": self.cache,
            "removed": self.removed,
            "kept": list(self.kept),
            "objects": {found.key: found.bytes for found in self.objects},
            "bytes": self.bytes,
            "young": self.young,
            "other": self.other,
        }


def collect_garbage(
    url: str | os.PathLike[str] | Location,
    *,
    remove: bool = False,
    keep: int = 1,
    grace_seconds: float = GRACE_SECONDS,
    on_wait: Callable[[Wait], None] | None = None,
) -> GarbageReport:
    """List, or remove, what no kept revision of a cache needs.

    Args:
        url: The cache.
        remove: Whether to remove it.
        keep: Number of the latest revisions to keep, 1 or more.
        grace_seconds: Age below which nothing is removed.
        on_wait: Called while another process holds the manifest lock.

    Raises:
        UsageError: Keys cannot be listed there.
        CacheError: A run is at work.
        CacheDamaged: A kept revision cannot be read, so what it needs is not known.
    """
    if keep < 1:
        raise UsageError("at least one revision has to be kept", where="keep", got=keep)
    location = locate(url, write=remove)
    if not location.lists:
        raise UsageError(
            "the objects of this cache cannot be listed",
            where=location,
            hint="collect garbage where the cache is stored",
        )
    if not remove:
        return _report(location, keep, grace_seconds, removed=False)
    claims = Claims(location, on_wait=on_wait)
    with claims.exclusive(MANIFEST):
        _refuse_runs(location)
        if read_manifest(location).dropping:
            finish_drops(CacheWriter.open(location))
        report = _report(location, keep, grace_seconds, removed=True)
        _remove(location, claims, report, grace_seconds)
        location.sweep()
        claims.sweep()
    return report


def _refuse_runs(location: Location) -> None:
    """Raise an error if a process that has perhaps not ended has a claim."""
    for name in location.names(CLAIMS):
        key = f"{CLAIMS}/{name}"
        if name == f"{MANIFEST}.json" or name.startswith(TRIAL) or is_left(location, key):
            continue
        raise CacheError(
            "a run is at work on this cache",
            where=f"{location}/{key}",
            got=read_holder(location, key),
            hint="wait for it, or remove the claims of a run that has certainly ended",
        )


def _report(location: Location, keep: int, grace_seconds: float, *, removed: bool) -> GarbageReport:
    manifest = read_manifest(location)
    revisions = _kept_revisions(location, manifest, keep, grace_seconds)
    needed = _needed(location, manifest, revisions)
    objects, young, other = [], 0, 0
    for key in sorted(location.keys(), key=_removal_order):
        if key in needed.keys:
            continue
        if not needed.is_of_a_cache(key):
            other += not key.startswith(f"{CLAIMS}/")
        elif needed.is_garbage(key):
            if _is_old(location, key, grace_seconds):
                objects.append(Garbage(key, location.size(key) or 0))
            else:
                young += 1
    kept = tuple(sorted(revision.number for revision in revisions))
    return GarbageReport(str(location), removed, kept, tuple(objects), young, other)


def _removal_order(key: str) -> tuple[int, str]:
    """Sort what names others first: a process that is killed leaves nothing that names nothing."""
    first = next((n for n, prefix in enumerate(_ORDER) if key.startswith(prefix)), len(_ORDER))
    return first, key


def _is_old(location: Location, key: str, grace_seconds: float) -> bool:
    modified = location.modified(key)
    return modified is not None and time.time() - modified >= grace_seconds


def _kept_revisions(
    location: Location, manifest: Manifest, keep: int, grace_seconds: float
) -> list[Revision]:
    """Return the current revision, those before it, and those that were replaced recently.

    Raises:
        CacheDamaged: One of them cannot be read.
    """
    if manifest.revision is None:
        return []
    current = manifest.revision.number
    older = sorted((n for n in numbers(location, "revisions") if n < current), reverse=True)
    found, successor = [read_revision(location, manifest.revision)], current
    for position, number in enumerate(older):
        if position < keep - 1 or not _is_old(location, revision_key(successor), grace_seconds):
            key = revision_key(number)
            content = location.read(key)
            found.append(parse_revision(parse_json(content or b"", key), f"{location}/{key}"))
        successor = number
    return found


@dataclass
class _Needed:
    """Keys that are needed, and where others may still be written.

    Attributes:
        keys: Keys that kept revisions name.
        prefixes: Prefixes of the shards, commits and documents of all declared groups and views.
        current: Number of the current revision, 0 without one.
    """

    keys: set[str]
    prefixes: set[str] = field(default_factory=set)
    current: int = 0

    def is_of_a_cache(self, key: str) -> bool:
        """Return whether a cache may have an object of this key."""
        top = key.partition("/")[0]
        if top in {"revisions", "signatures"}:
            return _NUMBERED.fullmatch(key) is not None
        if top == "ledger":
            return _LEDGER.fullmatch(key) is not None
        shard = "/c/" in key or key.endswith("zarr.json")
        return (top in {*DATA, "teachers"} and shard) or top in {
            "commits",
            "probes",
            "withdrawn",
            "zarr.json",
        }

    def is_garbage(self, key: str) -> bool:
        """Return whether an object that no kept revision names is not needed otherwise."""
        numbered = _NUMBERED.fullmatch(key) or _LEDGER.fullmatch(key)
        if numbered is not None:  # later ones belong to a seal that was interrupted or put back
            return int(numbered[1]) <= self.current
        if not key.startswith(("teachers/", *(f"{kind}/" for kind in VIEW_ARRAYS), "commits/")):
            return False
        parts = key.split("/")
        return not any("/".join(parts[:n]) + "/" in self.prefixes for n in range(1, len(parts)))


def _needed(location: Location, manifest: Manifest, revisions: list[Revision]) -> _Needed:
    """Return what the kept revisions and the declarations need."""
    needed = _Needed({"zarr.json"}, current=manifest.revision.number if manifest.revision else 0)
    for revision in revisions:
        number = revision.number
        needed.keys |= {revision_key(number), f"revisions/{number}.copies.json"}
        needed.keys |= {f"signatures/{number}.json", *revision.metadata}
        for pointer in revision.ledgers.values():
            needed.keys.add(pointer.key)
            commits = parse_ledger(location, pointer).commits.values()
            needed.keys |= {a.key for commit in commits for a in commit.arrays.values()}
    for placement in _declared(location, manifest):
        slot = "" if placement.slot is None else f"{placement.slot}/"
        needed.prefixes |= {f"{placement.path(name)}/c/{slot}" for name in placement.specs}
        needed.prefixes.add(f"commits/{placement.group}/{placement.view}/")
        # documents of groups: those of the arrays, and of the groups above them
        for name in placement.specs:
            parts = placement.path(name).split("/")
            needed.keys |= {"/".join([*parts[:n], "zarr.json"]) for n in range(1, len(parts) + 1)}
    return needed


def _declared(location: Location, manifest: Manifest) -> Iterator[Placement]:
    """Yield the placement of every declared view, sealed or not."""
    yield from data_placements(manifest)
    for name in group_names(manifest):
        group = read_group(location, name)
        yield from (group.placement(view) for view in group.ledger_views)


def _remove(
    location: Location, claims: Claims, report: GarbageReport, grace_seconds: float
) -> None:
    """Remove objects that are still old, as long as the lock is held.

    Raises:
        StorageError: Another process has taken over the lock; what is left is removed next time.
    """
    looked = -_LOCK_SECONDS
    for found in report.objects:
        if time.monotonic() - looked >= _LOCK_SECONDS:
            if not claims.holds(MANIFEST):
                raise StorageError(
                    "another process has taken over the manifest lock",
                    where=location,
                    hint="re-run the same command: nothing that is needed was removed",
                )
            looked = time.monotonic()
        if _is_old(location, found.key, grace_seconds):
            location.delete(found.key)
            for folder in reversed(parents_of(found.key)):
                location.remove_folder(folder)  # if it is empty
