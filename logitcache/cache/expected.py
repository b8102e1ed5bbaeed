"""What there should be, according to the best witness: the ledger, or else the commits.

A ledger is digested by its revision, which is digested by the root, so it is believed. Where there
is none yet, or it is damaged, each commit is asked, and checked for what a commit of that place
must say.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from logitcache.cache.faults import Cause, Fault
from logitcache.cache.format import (
    NO_VIEW,
    SAMPLE_ARRAYS,
    SAMPLES,
    TEACHERS,
    VIEWS,
    canonical_json,
    commit_key,
    teacher_group,
)
from logitcache.cache.groups import Group, group_names, read_group
from logitcache.cache.ledger import (
    Commit,
    LedgerPointer,
    Revision,
    committed_units,
    parse_commit,
    parse_json,
    read_copies,
    read_ledger,
    read_revision,
)
from logitcache.cache.manifest import MAX_UNITS
from logitcache.cache.partners import mixed_views
from logitcache.cache.sealed import manifest_fault, metadata_faults
from logitcache.errors import CacheDamaged, CacheError

if TYPE_CHECKING:
    from logitcache.cache.location import Location
    from logitcache.cache.manifest import Manifest

__all__ = ["Expected", "View", "expected_views"]


@dataclass(frozen=True)
class View:
    """One view of a group and who vouches for it.

    Attributes:
        location: The cache.
        group: Path of the group.
        view: Id of the view, ``-`` for the samples.
        unit_rows: Rows of a unit of the group.
        slot: Where the view lies on the first axis; None for samples and partners.
        arrays: Names of the group's arrays.
        ledger: Where its ledger lies; None if it was never sealed.
    """

    location: Location
    group: str
    view: str
    unit_rows: int
    slot: int | None
    arrays: tuple[str, ...]
    ledger: LedgerPointer | None

    def read(self) -> tuple[list[Commit], list[Fault]]:
        """Return the commits to be believed, by unit, and what is wrong with their documents."""
        faults: list[Fault] = []
        sealed: dict[int, Commit] = {}
        units = committed_units(self.location, self.group, self.view)
        if self.ledger is not None:
            units |= set(range(min(self.ledger.units, MAX_UNITS)))
            try:
                sealed = read_ledger(self.location, self.ledger).commits
            except CacheDamaged as error:
                faults.append(self._fault(Cause.LEDGER, error.what, self.ledger.key))
        commits: dict[int, Commit] = {}
        for unit in sorted(units):
            commit, fault = self._commit(unit, sealed.get(unit))
            if commit is not None:
                commits[unit] = commit
            if fault is not None:
                faults.append(fault)
        return [commits[unit] for unit in sorted(commits)], faults

    def _commit(self, unit: int, sealed: Commit | None) -> tuple[Commit | None, Fault | None]:
        """Return the commit of a unit and what is wrong with its object."""
        key = commit_key(self.group, self.view, unit)
        content = self.location.read(key)
        if sealed is not None:
            if content == canonical_json(sealed.to_json()):
                return sealed, None
            detail = "no such object" if content is None else "not the commit that was sealed"
            return sealed, self._fault(Cause.COMMIT, detail, key, unit)
        if content is None:
            detail = "no such object, and its ledger cannot be asked"
            return None, self._fault(Cause.COMMIT, detail, key, unit, recompute=True)
        try:
            commit = parse_commit(parse_json(content, key), key)
        except CacheDamaged as error:
            detail = f"{error.what}: {error.got}"
            return None, self._fault(Cause.COMMIT, detail, key, unit, recompute=True)
        if not self._belongs(commit, unit):
            detail = "it does not describe the unit it is named after"
            return None, self._fault(Cause.COMMIT, detail, key, unit, recompute=True)
        return commit, None

    def _belongs(self, commit: Commit, unit: int) -> bool:
        paths = {f"{self.group}/{name}" for name in self.arrays}
        start = unit * self.unit_rows
        place = f"/c/{unit}" if self.slot is None else f"/c/{self.slot}/{unit}"
        return (
            (commit.group, commit.view, commit.unit) == (self.group, self.view, unit)
            and commit.rows == (start, start + self.unit_rows)
            and commit.arrays.keys() == paths
            and all(_is_shard(s.key, path + place) for path, s in commit.arrays.items())
        )

    def _fault(
        self,
        cause: Cause,
        detail: str,
        key: str,
        unit: int | None = None,
        *,
        recompute: bool = False,
    ) -> Fault:
        return Fault(cause, detail, key, self.group, self.view, unit, recompute=recompute)


@dataclass
class Expected:
    """All views of all groups, and damage to the documents that say so."""

    views: list[View] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)


def expected_views(location: Location, manifest: Manifest) -> Expected:
    """Find out what a cache should hold, from its revision and its manifest."""
    expected = Expected()
    revision = _revision(location, manifest, expected.faults)
    ledgers = revision.ledgers if revision else {}
    names = (*SAMPLE_ARRAYS, "key")
    pointer = ledgers.get(f"{SAMPLES}/{NO_VIEW}")
    expected.views.append(
        View(location, SAMPLES, NO_VIEW, manifest.unit_rows, None, names, pointer)
    )
    mixed = {path.split("/")[1] for path in ledgers if path.startswith(f"{VIEWS}/")}
    for view in sorted(mixed.union(mixed_views(manifest))):
        partner, pointer = (f"{view}/partner",), ledgers.get(f"{VIEWS}/{view}")
        expected.views.append(
            View(location, VIEWS, view, manifest.unit_rows, None, partner, pointer)
        )
    below = f"{TEACHERS}/"
    sealed = {
        path.removeprefix(below).rpartition("/")[0] for path in ledgers if path.startswith(below)
    }
    for name in sorted(sealed.union(group_names(manifest))):
        group = _group(location, name, revision, expected.faults)
        if group is not None:
            expected.views += [
                View(
                    location,
                    group.path,
                    view,
                    group.unit_rows,
                    slot,
                    tuple(group.specs()),
                    ledgers.get(f"{group.path}/{view}"),
                )
                for slot, view in enumerate(group.slots)
                if view in manifest.views or f"{group.path}/{view}" in ledgers
            ]
    return expected


def _revision(location: Location, manifest: Manifest, faults: list[Fault]) -> Revision | None:
    """Read what was sealed and compare the manifest and all metadata with it."""
    if manifest.revision is None:
        return None
    try:
        revision = read_revision(location, manifest.revision)
    except CacheDamaged as error:
        key = f"revisions/{manifest.revision.number}.json"
        faults.append(Fault(Cause.REVISION, error.what, key))
        return None
    try:
        read_copies(location, revision)
    except CacheDamaged as error:
        key = f"revisions/{revision.number}.copies.json"
        faults.append(Fault(Cause.REVISION, error.what, key))
    fault = manifest_fault(location, manifest, revision)
    faults += [fault] if fault else []
    faults += metadata_faults(location, revision)
    return revision


def _group(
    location: Location, name: str, revision: Revision | None, faults: list[Fault]
) -> Group | None:
    """Read a group; where its own document is damaged, read the sealed copy of it."""
    key = f"{teacher_group(name)}/zarr.json"
    if not any(fault.key == key for fault in faults):
        try:
            return read_group(location, name)
        except CacheError as error:
            faults.append(Fault(Cause.METADATA, error.what, key, teacher_group(name)))
    try:
        copies = read_copies(location, revision) if revision else None
        document = copies.documents.get(key) if copies else None
        return read_group(location, name, document.encode()) if document else None
    except CacheError:
        return None  # reported above: nothing below this group can be told


def _is_shard(key: str, prefix: str) -> bool:
    rest = key.removeprefix(prefix)
    return rest != key and all(part in {"", "0"} for part in rest.split("/"))
