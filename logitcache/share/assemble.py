"""Writing of a cache that is made from others.

Everything is declared first, then unit after unit is committed, then the cache is sealed. A process
that was killed continues with the units that have no commit; the sources are only read.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from logitcache.cache.format.groups import TeacherGroup, groups_of
from logitcache.cache.format.ledger import committed_units
from logitcache.cache.format.manifest import read_manifest
from logitcache.cache.format.names import HEADLESS
from logitcache.cache.store.zarr_store import RecordingStore
from logitcache.cache.write.claims import MANIFEST, Claims
from logitcache.cache.write.unit_commit import commit_copy, commit_unit
from logitcache.cache.write.writer import CacheWriter
from logitcache.errors import UsageError
from logitcache.share.accuracy import AccuracyCount
from logitcache.share.documents import copy_documents
from logitcache.share.gathering import GatheredRows
from logitcache.share.kept_reads import KeptDocuments

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from logitcache.cache.format.manifest import RevisionPointer
    from logitcache.cache.format.placement import Placement
    from logitcache.cache.store.base import Location
    from logitcache.cache.write.claims import Wait
    from logitcache.share.plan import CachePlan
    from logitcache.share.view_plan import ViewPlan

__all__ = ["Assembled", "Progress", "assemble"]


class Progress(NamedTuple):
    """Numbers of units that are committed, and of all units."""

    done: int
    total: int


class Assembled(NamedTuple):
    """What was written.

    Attributes:
        revision: The sealed revision.
        copied: Number of units that were copied as bytes.
        encoded: Number of units that were gathered from rows of the sources and encoded again.
        bytes_written: Bytes that were written, shards and documents.
    """

    revision: RevisionPointer
    copied: int
    encoded: int
    bytes_written: int


def assemble(
    plan: CachePlan,
    location: Location,
    *,
    on_progress: Callable[[Progress], None] | None = None,
    on_wait: Callable[[Wait], None] | None = None,
) -> Assembled:
    """Write a cache, or finish one that the same command has begun.

    Args:
        plan: What it declares and contains.
        location: Where it is written; empty, or with a part of the same cache.
        on_progress: Called after every unit.
        on_wait: Called while another process holds the manifest lock.

    Raises:
        UsageError: Another cache is there.
        CacheDamaged: An object of a source is not the one that was committed.
    """
    claims = Claims(location, on_wait=on_wait)
    with claims.exclusive(MANIFEST):
        location.sweep()
        documents = KeptDocuments(location)
        writer = _declared(plan, documents.location)
        run = _Run(plan, writer, on_progress)
        pointer = writer.manifest.revision
        if pointer is None:
            run.commit_all()
            copy_documents(plan, documents.location)
            pointer = writer.seal(plan.facts.fingerprint, run.accuracy.result())
        claims.sweep()
    return Assembled(pointer, run.copied, run.encoded, documents.bytes_written)


def _declared(plan: CachePlan, location: Location) -> CacheWriter:
    """Declare everything that is not declared yet.

    Raises:
        UsageError: Another cache is there.
    """
    if location.size("zarr.json") is None:
        writer = CacheWriter.create(
            location,
            unit_rows=plan.rows.unit_rows,
            segment=plan.segments[0],
            data=plan.data,
            versions=plan.versions,
            derived_from=plan.derived_from,
            **plan.stored,
        )
    else:
        _refuse_other_cache(plan, location)
        writer = CacheWriter.open(location)
    if writer.manifest.revision is not None:
        return writer
    for segment in plan.segments[len(writer.manifest.segments) :]:
        writer.add_segment(segment)
    writer.add_views(plan.views)
    manifest = writer.manifest
    for feature in plan.requires:
        manifest = manifest.requiring(feature)
    if manifest != writer.manifest:
        writer.publish(manifest)
    _declare_groups(plan, writer)
    return writer


def _declare_groups(plan: CachePlan, writer: CacheWriter) -> None:
    """Declare teachers, taps and tables that are not declared yet."""
    logits = groups_of(plan.groups, TeacherGroup)
    for name, record in plan.records.items():
        if name in writer.manifest.teachers:
            continue
        if name in logits:
            writer.add_teacher(record, logits[name])
        else:
            teachers = {**writer.manifest.teachers, name: record}
            writer.publish(writer.manifest.changed(teachers=teachers).requiring(HEADLESS))
    declared = writer.groups()
    for name, group in plan.groups.items():
        if name not in declared and name not in logits:
            writer.add_group(group)


def _refuse_other_cache(plan: CachePlan, location: Location) -> None:
    found = read_manifest(location)
    if found.derived_from == plan.derived_from and found.segments[:1] == plan.segments[:1]:
        return
    raise UsageError(
        "the destination has another cache",
        where=location,
        expected="an empty or missing folder, or what the same command has begun",
        got=found.derived_from.command if found.derived_from else "a cache of other origin",
        hint="choose another destination, or remove what is in it",
    )


class _Run:
    """Copying of the units of a plan that are not committed yet.

    Attributes:
        copied: Number of units that were copied as bytes.
        encoded: Number of units that were encoded again.
        accuracy: Accuracy of the teachers, over the units that are committed.
    """

    def __init__(
        self, plan: CachePlan, writer: CacheWriter, on_progress: Callable[[Progress], None] | None
    ) -> None:
        self._plan, self._writer, self._location = plan, writer, writer.location
        self._store = RecordingStore(writer.location)
        self._on_progress = on_progress
        self._total = sum(len(part.units(plan.rows)) for part in plan.parts)
        self._done = 0
        self.copied = self.encoded = 0
        self.accuracy = AccuracyCount(plan, writer.manifest)

    def commit_all(self) -> None:
        """Commit every unit that has no commit, view after view."""
        for part in self._plan.parts:
            placement = part.placement
            units = part.units(self._plan.rows)
            done = committed_units(self._location, placement.group, placement.view)
            missing = [unit for unit in units if unit not in done]
            self._count(len(units) - len(missing))
            self._measure_again(part, done.intersection(units))
            copyable = _Copyable(self._plan, part, self._location)
            whole = {unit: origin for unit in missing if (origin := copyable.origin(unit))}
            self._copy(part, whole)
            rows = GatheredRows(self._plan, part)
            for unit in missing:
                if unit not in whole:
                    self._encode(part, unit, rows)

    def _copy(self, part: ViewPlan, origins: Mapping[int, tuple[int, int]]) -> None:
        """Copy units as bytes, several at a time."""
        group = self.accuracy.group_of(part)

        def copy(item: tuple[int, tuple[int, int]]) -> None:
            unit, (number, theirs) = item
            source, placement = self._plan.sources[number], part.sources[number]
            contents = source.shards(placement, theirs)
            commit = source.commits(placement)[theirs]
            if not part.measured:
                commit = replace(commit, measured={})
            commit_copy(self._location, part.placement, unit, commit, contents)
            if group is not None:
                self.accuracy.count(group, unit, source.decoded(placement, theirs, contents))

        for number in {number for number, _ in origins.values()}:
            self._plan.sources[number].commits(part.sources[number])  # read once, by one thread
        with ThreadPoolExecutor(self._location.in_flight, thread_name_prefix="copies") as pool:
            for _ in pool.map(copy, origins.items()):  # raises the first error
                self.copied += 1
                self._count(1)

    def _encode(self, part: ViewPlan, unit: int, rows: GatheredRows) -> None:
        arrays, conditions = rows.of(unit)
        commit_unit(self._location, self._store, part.placement, unit, arrays, conditions)
        group = self.accuracy.group_of(part)
        if group is not None:
            self.accuracy.count(group, unit, arrays)
        self.encoded += 1
        self._count(1)

    def _measure_again(self, part: ViewPlan, units: Collection[int]) -> None:
        """Count outputs of units that a run before this one has committed."""
        group = self.accuracy.group_of(part)
        if group is None:
            return
        view, names, size = part.placement.view, list(part.placement.specs), group.unit_rows
        for unit in sorted(units):
            start = unit * size
            encoded = self._writer.read_rows(group, view, start, start + size, names)
            self.accuracy.count(group, unit, encoded)

    def _count(self, units: int) -> None:
        self._done += units
        if self._on_progress is not None and units:
            self._on_progress(Progress(self._done, self._total))


class _Copyable:
    """Units of one view that are the same bytes in a source and in the new cache."""

    def __init__(self, plan: CachePlan, part: ViewPlan, location: Location) -> None:
        self._plan, self._part, self._location = plan, part, location
        self._same: dict[int, bool] = {}

    def origin(self, unit: int) -> tuple[int, int] | None:
        """Return number and unit of the source of a unit that can be copied; None for others."""
        found = self._part.whole_unit(self._plan.sources, self._plan.rows, unit)
        return found if found is not None and self._has_same_layout(found[0]) else None

    def _has_same_layout(self, number: int) -> bool:
        """Return whether a source arranges the rows of a shard as the new cache does."""
        if number not in self._same:
            theirs, ours = self._part.sources[number], self._part.placement
            source = self._plan.sources[number]
            self._same[number] = _shapes(theirs) == _shapes(ours) and all(
                theirs.layout(source.location, name) == ours.layout(self._location, name)
                for name in ours.specs
            )
        return self._same[number]


def _shapes(placement: Placement) -> dict[str, tuple[int, ...] | None]:
    """Return the shape of a row of every array; None for an array of strings."""
    return {n: None if spec is None else spec.shape for n, spec in placement.specs.items()}
