"""Inventory of what a cache has to contain, from ledgers or else from commits.

The root has the digest of the revision, and the revision those of the ledgers, so ledgers are
trusted. Without an intact ledger, each commit is read and compared with what its key implies.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from logitcache.cache.format.data_arrays import VIEW_ARRAYS, data_faults, data_placements
from logitcache.cache.format.documents import numbers, parse_group, parse_json
from logitcache.cache.format.groups import Group, check_group, group_names, read_group
from logitcache.cache.format.ledger import (
    Commit,
    LedgerPointer,
    Revision,
    committed_units,
    parse_commit,
    parse_ledger,
    parse_revision,
    read_copies,
    read_revision,
)
from logitcache.cache.format.names import (
    MANIFEST_CLAIM,
    NO_VIEW,
    SAMPLES,
    TEACHERS,
    canonical_json,
    commit_key,
    copies_key,
    revision_key,
    teacher_group,
)
from logitcache.cache.format.placement import parents_of
from logitcache.cache.read.diagnose import Cause, Fault
from logitcache.cache.read.metadata_check import manifest_fault, metadata_faults
from logitcache.errors import CacheDamaged, CacheError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from numpy.typing import NDArray

    from logitcache.cache.format.manifest import Manifest
    from logitcache.cache.format.placement import Placement
    from logitcache.cache.store.base import Location

__all__ = ["Expected", "View", "expected_views"]

_FOLDER = {"attributes": {}, "zarr_format": 3, "node_type": "group"}
# different versions of zarr write one or the other
_FOLDERS = (_FOLDER, {**_FOLDER, "consolidated_metadata": None})


@dataclass(frozen=True)
class View:
    """One view of a group and the documents of its units.

    Attributes:
        location: The cache.
        placement: Placement of its arrays.
        ledger: Pointer to its ledger; None if it was never sealed.
        sealed: Units that its ledger must list; empty if it was never sealed.
        fault_of: Returns what is wrong with decoded rows of arrays by name; None if nothing is.
    """

    location: Location
    placement: Placement
    ledger: LedgerPointer | None
    sealed: tuple[int, ...] = ()
    fault_of: Callable[[Mapping[str, NDArray[Any]]], str | None] = lambda _: None

    @property
    def group(self) -> str:
        """Path of the group."""
        return self.placement.group

    @property
    def view(self) -> str:
        """Id of the view."""
        return self.placement.view

    def sealed_bytes(self) -> int:
        """Return the bytes of all units of the ledger; 0 if there is none that can be read."""
        try:
            ledger = None if self.ledger is None else parse_ledger(self.location, self.ledger)
        except CacheDamaged:
            ledger = None
        commits = [] if ledger is None else ledger.commits.values()
        return sum(array.bytes for commit in commits for array in commit.arrays.values())

    def read(self) -> tuple[list[Commit], list[Fault]]:
        """Return the valid commits, by unit, and the faults of their documents."""
        faults: list[Fault] = []
        sealed: dict[int, Commit] = {}
        units = committed_units(self.location, self.group, self.view)
        if self.ledger is not None:
            sealed = self._sealed(self.ledger, faults)
            # of a damaged ledger, the revision still has the number of units
            units |= sealed.keys() or set(self.sealed[: self.ledger.units])
        commits: dict[int, Commit] = {}
        for unit in sorted(units):
            commit, fault = self._commit(unit, sealed.get(unit))
            if commit is not None:
                commits[unit] = commit
            if fault is not None:
                faults.append(fault)
        return [commits[unit] for unit in sorted(commits)], faults

    def _sealed(self, pointer: LedgerPointer, faults: list[Fault]) -> dict[int, Commit]:
        """Return the commits of the ledger that fit their units."""
        try:
            ledger = parse_ledger(self.location, pointer)
        except CacheDamaged as error:
            faults.append(self._fault(Cause.LEDGER, error.what, pointer.key))
            return {}
        found = ledger.commits
        if (ledger.group, ledger.view) != (self.group, self.view):
            detail = f"it is of {ledger.group}, view {ledger.view}"
            faults.append(self._fault(Cause.LEDGER, detail, pointer.key))
        sealed = {}
        for unit, commit in found.items():
            wrong = self.placement.fault_of(commit, unit)
            if wrong is None and unit in self.sealed:
                sealed[unit] = commit
                continue
            detail = f"unit {unit}: {wrong or 'it contains no rows of the cache'}"
            faults.append(self._fault(Cause.LEDGER, detail, pointer.key))
        lacking = [unit for unit in self.sealed if unit not in found]
        if lacking:
            detail = f"it does not list {len(lacking)} units with rows, for example {lacking[0]}"
            faults.append(self._fault(Cause.LEDGER, detail, pointer.key))
        return sealed

    def _commit(self, unit: int, sealed: Commit | None) -> tuple[Commit | None, Fault | None]:
        """Return the commit of a unit and the fault of its object."""
        key = commit_key(self.group, self.view, unit)
        content = self.location.read(key)
        if sealed is not None:
            if content == canonical_json(sealed.to_json()):
                return sealed, None
            detail = "no such object" if content is None else "it differs from the sealed commit"
            return sealed, self._fault(Cause.COMMIT, detail, key, unit)
        if content is None:
            detail = "no such object, and its ledger cannot be read"
            return None, self._fault(Cause.COMMIT, detail, key, unit, recompute=True)
        try:
            commit = parse_commit(parse_json(content, key), key)
        except CacheDamaged as error:
            return None, self._fault(Cause.COMMIT, error.brief, key, unit, recompute=True)
        wrong = self.placement.fault_of(commit, unit)
        if wrong is not None:
            detail = f"it describes another unit than its key names: {wrong}"
            return None, self._fault(Cause.COMMIT, detail, key, unit, recompute=True)
        return commit, None

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
    """All views of all groups, and the faults of the documents that list them."""

    views: list[View] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)


def expected_views(location: Location, manifest: Manifest) -> Expected:
    """Return what a cache should contain, from its revision and its manifest."""
    expected = Expected()
    revision = _revision(location, manifest, expected.faults)
    if manifest.revision is not None:
        expected.faults += _newer_revisions(location, manifest.revision.number)
    ledgers = revision.ledgers if revision else {}
    rows = manifest.unit_rows
    segments = _sealed_segments(manifest, revision, expected.faults)

    def add(
        placement: Placement, fault_of: Callable[[Mapping[str, NDArray[Any]]], str | None]
    ) -> None:
        pointer = ledgers.get(placement.ledger)
        sealed: tuple[int, ...] = ()
        if revision is not None and pointer is not None:
            sealed = tuple(placement.units(segments, rows))
            if pointer.units != len(sealed):
                detail = f"it lists {pointer.units} units instead of {len(sealed)}"
                expected.faults.append(
                    Fault(Cause.LEDGER, detail, pointer.key, placement.group, placement.view)
                )
        expected.views.append(View(location, placement, pointer, sealed, fault_of))

    faults_of = data_faults(manifest)
    for placement in _data(manifest, ledgers):
        add(placement, faults_of[placement.group])
    below = f"{TEACHERS}/"
    sealed_groups = {
        path.removeprefix(below).rpartition("/")[0] for path in ledgers if path.startswith(below)
    }
    # where the manifest is damaged, a difference from it is no fault of a group
    believed = all(fault.cause is not Cause.MANIFEST for fault in expected.faults)
    for name in sorted(sealed_groups.union(group_names(manifest))):
        group = _group(location, name, revision, expected.faults)
        if group is None:
            continue
        if believed:
            try:
                check_group(group, manifest, location)
            except CacheDamaged as error:
                key = f"{group.path}/zarr.json"
                expected.faults.append(Fault(Cause.METADATA, error.what, key, group.path))
        for view in group.ledger_views:
            declared = view in manifest.views or view == NO_VIEW
            if declared or f"{group.path}/{view}" in ledgers:
                add(group.placement(view), group.fault_of)
    expected.faults += _document_faults(location, expected, manifest)
    expected.faults += _folder_faults(location, expected, revision)
    known = {view.placement.ledger for view in expected.views}
    for path, pointer in ledgers.items():
        if path not in known:
            detail = f"it lists a ledger of {path}, which is not a view of any group"
            expected.faults.append(Fault(Cause.REVISION, detail, pointer.key))
    if revision is not None and f"{SAMPLES}/{NO_VIEW}" not in ledgers:
        key = revision_key(revision.number)
        expected.faults.append(Fault(Cause.REVISION, "it lists no ledger of the samples", key))
    return expected


def _data(manifest: Manifest, ledgers: Iterable[str]) -> list[Placement]:
    """Return the placements of samples, images and views, declared or with a sealed ledger."""
    found = {placement.ledger: placement for placement in data_placements(manifest)}
    for path in sorted(ledgers):
        group, _, view_id = path.partition("/")
        if group in VIEW_ARRAYS and path not in found:
            found[path] = VIEW_ARRAYS[group].placement(view_id, manifest)
    return list(found.values())


def _sealed_segments(
    manifest: Manifest, revision: Revision | None, faults: list[Fault]
) -> list[tuple[int, int]]:
    """Return (start, rows) of the segments that are sealed: the first ones of the manifest."""
    segments = [(segment.start, segment.rows) for segment in manifest.segments]
    if revision is None:
        return []
    count = len(revision.segments)
    if not count or segments[:count] != list(revision.segments):
        detail = "its segments differ from the first ones of the manifest"
        faults.append(Fault(Cause.REVISION, detail, revision_key(revision.number)))
        return segments
    return segments[:count]


def _document_faults(location: Location, expected: Expected, manifest: Manifest) -> list[Fault]:
    """Return the faults in the metadata of arrays, each array read once."""
    known = {fault.key for fault in expected.faults}
    # views of a group share its arrays; the largest slot requires the largest shape
    placements = sorted((view.placement for view in expected.views), key=lambda p: p.slot or 0)
    last = {p.path(name): (p, name) for p in placements for name in p.specs}
    faults = []
    for path, (placement, name) in last.items():
        key = f"{path}/zarr.json"
        if key in known:
            continue
        try:
            placement.layout(location, name, manifest.capacity)
        except CacheDamaged as error:
            faults.append(Fault(Cause.METADATA, error.brief, key, placement.group))
    return faults


def _revision(location: Location, manifest: Manifest, faults: list[Fault]) -> Revision | None:
    """Read the revision and compare the manifest and all metadata with it."""
    if manifest.revision is None:
        return None
    try:
        revision = read_revision(location, manifest.revision)
    except CacheDamaged as error:
        key = revision_key(manifest.revision.number)
        faults.append(Fault(Cause.REVISION, error.what, key))
        return None
    try:
        read_copies(location, revision)
    except CacheDamaged as error:
        key = copies_key(revision.number)
        faults.append(Fault(Cause.REVISION, error.what, key))
    fault = manifest_fault(location, manifest, revision)
    faults += [fault] if fault else []
    faults += metadata_faults(location, revision)
    return revision


def _folder_faults(
    location: Location, expected: Expected, revision: Revision | None
) -> list[Fault]:
    """Return the faults of the groups between the root and the groups with arrays.

    Versions before 0.2 did not seal their metadata.
    """
    sealed = revision.metadata if revision else {}
    faults = []
    for path in sorted({p for v in expected.views for p in parents_of(v.placement.holder)}):
        key = f"{path}/zarr.json"
        content = None if key in sealed else location.read(key)
        if content is None:
            continue
        values: object = None
        with contextlib.suppress(CacheDamaged):
            values = parse_json(content, key)
        if values not in _FOLDERS:
            detail = "it is not the metadata of a group without attributes"
            faults.append(Fault(Cause.METADATA, detail, key, path))
    # those of samples and partners have attributes; read_group has read those of teachers
    holders = {v.placement.holder for v in expected.views if v.placement.slot is None}
    for path in sorted(holders):
        key = f"{path}/zarr.json"
        if key in sealed:
            continue
        try:
            parse_group(location.read(key) or b"", key)
        except CacheDamaged as error:
            faults.append(Fault(Cause.METADATA, error.what, key, path))
    return faults


def _newer_revisions(location: Location, current: int) -> list[Fault]:
    """Return the faults of complete revisions that are newer than that of the manifest.

    A run that is killed between its last two writes leaves one as well, together with its claim.
    """
    if location.size(MANIFEST_CLAIM) is not None:
        return []
    if location.lists:
        newer = [number for number in numbers(location, "revisions") if number > current]
    else:
        newer = [current + 1]
    faults = []
    for number in newer:
        key = revision_key(number)
        content = location.read(key)
        try:
            found = None if content is None else parse_revision(parse_json(content, key), key)
        except CacheDamaged:
            continue  # an interrupted seal has left it
        if found is not None and found.number == number:
            detail = (
                f"the manifest names revision {current}, and revision {number} exists: an older "
                "manifest was restored, or a run was killed just before it finished"
            )
            faults.append(Fault(Cause.ROLLED_BACK, detail, key))
    return faults


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
        return None  # reported above: nothing below this group is known
