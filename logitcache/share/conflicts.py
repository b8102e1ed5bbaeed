"""Conflicts between caches that are to be merged, found before anything is written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from logitcache.cache.format.names import IMAGES, SAMPLES, Status, teacher_of
from logitcache.label_sets import LabelSets
from logitcache.share.gathering import GatheredRows
from logitcache.share.rows import NO_ROW

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from logitcache.cache.format.group import Group
    from logitcache.cache.format.manifest import DataRecord, TeacherRecord
    from logitcache.share.gathering import RowOrigins
    from logitcache.share.plan import CachePlan
    from logitcache.share.rows import RowPlan
    from logitcache.share.source import SourceCache
    from logitcache.share.view_plan import ViewPlan

__all__ = [
    "declared_conflicts",
    "differing_data",
    "differing_fields",
    "differing_records",
    "equal_rows",
    "image_conflicts",
    "output_conflicts",
    "same_units",
    "widened",
]

_DATA = ("class_names", "listing", "decoding", "label_width")


def declared_conflicts(
    sources: Sequence[SourceCache], chosen: Sequence[Mapping[str, Group]]
) -> Iterator[str]:
    """Yield differences of data policy and of teachers with the same name from the first source."""
    first = sources[0].cache.manifest
    records = dict(first.teachers)
    groups = dict(chosen[0])
    for source, own in zip(sources[1:], chosen[1:], strict=True):
        manifest = source.cache.manifest
        for field in differing_data(widened(first.data, manifest.data), manifest.data):
            yield f"{source}: data.{field} differs from that of {sources[0]}"
        for name in sorted({teacher_of(name) for name in own}):
            record = manifest.teachers[name]
            for what in differing_records(records.setdefault(name, record), record):
                yield f"{source}: teacher {name!r} has another {what}"
        for name, group in own.items():
            before = groups.setdefault(name, group)
            for field in differing_fields(before.to_json(), group.to_json()):
                yield f"{source}: {name} has another {field}"


def differing_data(ours: DataRecord, theirs: DataRecord) -> list[str]:
    """Return the fields in which classes and rules of listing or reading images differ."""
    return [field for field in _DATA if getattr(ours, field) != getattr(theirs, field)]


def widened(data: DataRecord, other: DataRecord) -> DataRecord:
    """Return a record of data with the room for the classes of an image that another one has.

    Rows can be filled up to a wider room. One class at most and label sets are different labels, so
    a record without room stays as it is, and so does one next to it.
    """
    if data.label_width is None or other.label_width is None:
        return data
    return data.model_copy(update={"label_width": other.label_width})


def differing_records(ours: TeacherRecord, theirs: TeacherRecord) -> list[str]:
    """Return what differs in two records of a teacher and determines outputs."""
    fields = sorted(ours.lock.keys() | theirs.lock.keys())
    differing = [f"{f} in its lock" for f in fields if ours.lock.get(f) != theirs.lock.get(f)]
    if ours.canonical_batch != theirs.canonical_batch:
        differing.append(f"batch size: {theirs.canonical_batch} for {ours.canonical_batch}")
    return differing


def differing_fields(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Return the fields in which attributes of a group differ, but for views and units."""
    fields = ours.keys() | theirs.keys()
    return sorted(
        field
        for field in fields - {"view_ids", "unit_rows", "lock_sha256"}
        if ours.get(field) != theirs.get(field)
    )


def image_conflicts(sources: Sequence[SourceCache], rows: RowPlan) -> Iterator[str]:
    """Yield how many images of the same key differ in content, label or readability."""
    for number, source in enumerate(sources):
        for before in range(number):
            shared = np.flatnonzero((rows.rows[number] != NO_ROW) & (rows.rows[before] != NO_ROW))
            if not len(shared):
                continue
            ours, theirs = rows.rows[number][shared], rows.rows[before][shared]
            for what, rows_differ in _differing_images(source, ours, sources[before], theirs):
                found = np.flatnonzero(rows_differ)
                if len(found):
                    key = source.samples("key")[ours[found[0]]]
                    yield (
                        f"{source}: {len(found)} images have another {what} than in "
                        f"{sources[before]}, for example {key}"
                    )


def _differing_images(
    source: SourceCache,
    ours: NDArray[np.int64],
    other: SourceCache,
    theirs: NDArray[np.int64],
) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Yield what may differ, and which rows of two sources differ in it: bool (N,)."""
    digests, labels, status = (
        (source.samples(name)[ours], other.samples(name)[theirs])
        for name in ("digest", "label", "status")
    )
    yield "content", (digests[0] != digests[1]).any(axis=1)
    sets = _label_sets(source), _label_sets(other)
    yield "label", (labels[0] != labels[1]) | _other_sets(sets[0], ours, sets[1], theirs)
    yield "status", (status[0] == Status.UNREADABLE) != (status[1] == Status.UNREADABLE)


def _label_sets(source: SourceCache) -> LabelSets | None:
    if source.cache.manifest.data.label_width is None:
        return None
    return LabelSets.of_rows(source.samples("label_count"), source.samples("label_ids"))


def _other_sets(
    own: LabelSets | None,
    ours: NDArray[np.signedinteger],
    other: LabelSets | None,
    theirs: NDArray[np.signedinteger],
) -> NDArray[np.bool_]:
    """Return which rows have other label sets, or labels on one side only: bool (N,)."""
    if own is None or other is None:
        return np.zeros(len(ours), np.bool_)
    first, second = own.take(ours), other.take(theirs)
    differing_N: NDArray[np.bool_] = first.differ(second) | (first.known != second.known)
    return differing_N


def output_conflicts(plan: CachePlan) -> Iterator[str]:
    """Yield views that some images do not have, and rows that two sources have differently."""
    with_images = np.zeros(len(plan.rows.rows[0]), np.bool_)
    with_images[plan.rows.image_rows] = True
    for part in plan.parts:
        if part.placement.group in {IMAGES, SAMPLES}:
            continue  # compared by image, and by its digest
        where = f"{part.placement.group.removeprefix('teachers/')}, view {part.placement.view}"
        if part.by_class:
            where = part.placement.group.removeprefix("teachers/")
        else:
            having = [plan.rows.rows[number] != NO_ROW for number in part.sources]
            lacking = int((with_images & ~np.logical_or.reduce(having)).sum())
            if lacking:
                yield f"{where}: {lacking} images have no outputs in any of the caches"
        differing = sum(_differing_rows(plan, part, unit) for unit in part.units(plan.rows))
        if differing:
            yield f"{where}: {differing} rows are in several caches, with other values"


def _differing_rows(plan: CachePlan, part: ViewPlan, unit: int) -> int:
    """Return how many rows of a unit two sources have with other values."""
    numbers = list(part.sources)
    size = part.placement.unit_rows
    if part.by_class:
        digests = {_contents(plan, part, number, unit) for number in numbers}
        return 0 if len(digests) == 1 else size
    start = unit * size
    count = 0
    for position, number in enumerate(numbers):
        for before in numbers[:position]:
            rows = [plan.rows.taken_from(n, start, start + size) for n in (before, number)]
            shared = (rows[0] != NO_ROW) & (rows[1] != NO_ROW)
            if not shared.any() or same_units(plan, part, before, number, unit):
                continue
            first, second = (GatheredRows(plan, part, [n]).of(unit)[0] for n in (before, number))
            names = compared_arrays(part, first)
            equal = [equal_rows(first[name], second[name]) for name in names]
            count += int((shared & ~np.logical_and.reduce(equal)).sum())
    return count


def compared_arrays(part: ViewPlan, arrays: Collection[str]) -> list[str]:
    """Return the arrays whose rows are compared: of encoded images their digests alone."""
    has_pages = any(part.placement.page(name) for name in part.placement.specs)
    return [name for name in arrays if not has_pages or name.endswith("digest")]


def same_units(plan: RowOrigins, part: ViewPlan, before: int, number: int, unit: int) -> bool:
    """Return whether two sources have a unit of the same rows, with the same content."""
    size = part.placement.unit_rows
    units = {}
    for n in (before, number):
        if part.sources[n].unit_rows != size:
            return False
        units[n] = plan.rows.whole_unit(n, plan.sources[n], unit, size)
    if None in units.values():
        return False
    return len({_contents(plan, part, n, found) for n, found in units.items()}) == 1


def _contents(plan: RowOrigins, part: ViewPlan, number: int, unit: int | None) -> tuple[str, ...]:
    """Return the digests of the decoded arrays of a unit of a source."""
    assert unit is not None
    commit = plan.sources[number].commits(part.sources[number])[unit]
    return tuple(stored.content_sha256 for _, stored in sorted(commit.arrays.items()))


def equal_rows(ours: Any, theirs: Any) -> Any:
    """Return which rows of two arrays have equal values, bool (N,)."""
    same = (ours == theirs) | ((ours != ours) & (theirs != theirs))  # NaN is the fill
    return same.reshape(len(same), -1).all(axis=1)
