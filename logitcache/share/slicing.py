"""Slices: a part of a cache as a cache of its own, without images and teachers."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from logitcache.cache.format.groups import row_groups
from logitcache.cache.format.names import kind_of, tap_of, teacher_of
from logitcache.cache.read.view_selection import choose_views
from logitcache.cache.store.open import is_within, locate
from logitcache.errors import UsageError, nearest
from logitcache.share.assemble import assemble
from logitcache.share.documents import fingerprint_counts
from logitcache.share.plan import make_plan
from logitcache.share.reencoding import reencoded_groups
from logitcache.share.row_selection import RowSelection, selected_rows
from logitcache.share.rows import RowPlan
from logitcache.share.source import SourceCache

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from logitcache.cache.format.group import Group
    from logitcache.cache.store.base import Location
    from logitcache.cache.write.claims import Wait
    from logitcache.share.assemble import Assembled, Progress
    from logitcache.share.plan import CachePlan

__all__ = ["DerivedSummary", "slice_cache", "summary_of"]


@dataclass(frozen=True)
class DerivedSummary:
    """Result of a slice or a merge.

    Attributes:
        destination: Location of the new cache.
        images: Number of its images.
        views: Number of its views.
        teachers: Names of its teachers.
        features: Its features, as ``<teacher>/<tap>``.
        copied: Number of units that this run copied as bytes.
        encoded: Number of units that this run gathered from rows and encoded again.
        bytes_read: Bytes of shards and documents that this run read from the sources.
        bytes_written: Bytes of shards and documents that this run wrote.
        revision_sha256: SHA-256 of the revision of the new cache.
        notes: Notes for the user.
    """

    destination: str
    images: int
    views: int
    teachers: tuple[str, ...]
    features: tuple[str, ...]
    copied: int
    encoded: int
    bytes_read: int
    bytes_written: int
    revision_sha256: str
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the summary as JSON values."""
        return asdict(self)


def slice_cache(
    source: str | os.PathLike[str] | Location,
    destination: str | os.PathLike[str] | Location,
    *,
    views: Sequence[str] = (),
    teachers: Sequence[str] = (),
    features: Sequence[str] | None = None,
    rows: RowSelection | None = None,
    top_k: int | None = None,
    bits: int | None = None,
    revision: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    on_wait: Callable[[Wait], None] | None = None,
) -> DerivedSummary:
    """Write a part of a cache as a cache of its own.

    The arrays are those of a cache that was computed with these images, views and teachers only.
    Units whose rows are all taken are copied as bytes; with fewer classes or bits, they are encoded
    again. A call that was interrupted can be repeated.

    Args:
        source: A sealed cache, which is only read.
        destination: An empty location, or one with a part of the same slice.
        views: Numbers, ranges or ids as :func:`.choose_views` reads them; all by default.
        teachers: Names of teachers, with their features and tables; all by default.
        features: Features of these teachers, as ``<teacher>/<tap>``; all by default.
        rows: Which images; all by default.
        top_k: Largest number of classes to store of each teacher; those of the source by default.
        bits: Largest number of bits of a sparse code, 4 to 8; those of the source by default.
        revision: sha256 of the revision that the source must have, or its first 12 digits or more.
        on_progress: Called after every unit.
        on_wait: Called while another process holds the lock of the destination.

    Raises:
        UsageError: Something cannot be selected, or the destination has another cache.
        CacheDamaged: An object of the source is not the one that was committed.
    """
    location = locate(destination, write=True)
    opened = SourceCache(source, revision=revision)
    refuse_same_place([opened], location)
    some = choose_views(list(opened.cache.views), list(views))
    groups, notes = _chosen_groups(opened, some, teachers, features)
    groups, more = reencoded_groups(groups, opened.cache.unit_rows, top_k, bits)
    notes += more
    selection = rows or RowSelection()
    sizes = {name: n for name, n in (("top_k", top_k), ("bits", bits)) if n is not None}
    options = {**selection.to_json(), **sizes}
    plan = make_plan([opened], _rows(opened, selection), [groups], "slice", options)
    done = assemble(plan, location, on_progress=on_progress, on_wait=on_wait)
    return summary_of(plan, location, done, notes)


def refuse_same_place(sources: Sequence[SourceCache], location: Location) -> None:
    """Raise an error if a cache would be written over one of its sources, or into its folder."""
    for source in sources:
        if is_within(location, source.location):
            raise UsageError(
                "the destination is a source, or in the folder of one",
                where=location,
                expected=f"a folder or URL outside of {source.location}",
                hint="sources are never changed; logitcache drop removes parts of a cache",
            )


def summary_of(
    plan: CachePlan, location: Location, done: Assembled, notes: Sequence[str]
) -> DerivedSummary:
    """Return the summary of a new cache."""
    counts = fingerprint_counts(plan)
    without = sum(count == 0 for count in counts.values())
    if without:
        notes = [
            *notes,
            f"{without} of {len(counts)} views have no view fingerprint, since their images are "
            "not in this cache: pixels of these views are not compared before training",
        ]
    return DerivedSummary(
        destination=str(location),
        images=plan.rows.images,
        views=len(plan.views),
        teachers=tuple(plan.records),
        features=tuple(f"{teacher_of(n)}/{tap}" for n in plan.groups if (tap := tap_of(n))),
        copied=done.copied,
        encoded=done.encoded,
        bytes_read=sum(source.bytes_read for source in plan.sources),
        bytes_written=done.bytes_written,
        revision_sha256=done.revision.sha256,
        notes=tuple(notes),
    )


def _rows(source: SourceCache, selection: RowSelection) -> RowPlan:
    """Return the selected rows of each segment, in their order."""
    selected = selected_rows(source, selection)
    parts: list[list[NDArray[np.int64]]] = [
        [start + np.flatnonzero(selected[start : start + count])]
        for start, count in source.segments
    ]
    return RowPlan.of_parts(source.cache.unit_rows, parts)


def _chosen_groups(
    source: SourceCache,
    views: Sequence[str],
    teachers: Sequence[str],
    features: Sequence[str] | None,
) -> tuple[dict[str, Group], list[str]]:
    """Return groups with the views that are taken, and notes on groups that are left out.

    Raises:
        UsageError: A teacher or a feature does not exist, or nothing is selected.
    """
    known = {teacher_of(name) for name in source.cache.groups}
    _refuse_unknown(source, "teacher", teachers, known)
    _refuse_unknown(source, "feature", features or (), source.cache.features)
    wanted = set(teachers) or known
    taps = set(source.cache.features if features is None else features)
    chosen, notes = {}, []
    for name, group in sealed_groups(source).items():
        is_tap = kind_of(name) == "features"
        if teacher_of(name) not in wanted:
            continue
        if is_tap and f"{teacher_of(name)}/{tap_of(name)}" not in taps:
            continue
        some = _with_views(group, views)
        if some is None:
            notes.append(f"{name} is left out: it has none of the selected views")
        else:
            chosen[name] = some
    left = {teacher_of(name) for name, group in chosen.items() if group.view_ids}
    chosen = {name: group for name, group in chosen.items() if teacher_of(name) in left}
    if not chosen:
        raise UsageError(
            "no outputs of the cache are selected",
            where=source.location,
            hint="logitcache inspect lists teachers, features and their views",
        )
    return chosen, notes


def _with_views(group: Group, views: Sequence[str]) -> Group | None:
    """Return a group with some of its views; None without any of them. Tables have no views."""
    with_rows = row_groups({group.name: group}).get(group.name)
    if with_rows is None:
        return group
    slots = tuple(view for view in with_rows.view_ids if view in views)
    return replace(with_rows, slots=slots) if slots else None


def sealed_groups(source: SourceCache) -> dict[str, Group]:
    """Return the groups of a cache, with their sealed views alone."""
    ledgers = source.cache.revision.ledgers
    found: dict[str, Group] = dict(source.cache.groups)
    for name, group in row_groups(found).items():
        sealed = tuple(v for v in group.view_ids if f"{group.path}/{v}" in ledgers)
        found[name] = replace(group, slots=sealed)
    return found


def _refuse_unknown(
    source: SourceCache, what: str, names: Sequence[str], known: Mapping[str, object] | set[str]
) -> None:
    for name in names:
        if name not in known:
            raise UsageError(
                f"no {what} {name!r} in this cache",
                where=source.location,
                hint=nearest(name, known),
            )
