"""Dropping teachers, taps or views from a cache: a new revision that does not list them.

Their targets remain as orphaned files. Their commits are removed, so that the same names can be
computed again.

The process may be killed at any step: the root names the new revision first, and the next drop or
precompute removes the remaining commits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from logitcache.cache.format.arrays import write_attributes
from logitcache.cache.format.groups import group_names, read_group, row_groups
from logitcache.cache.format.ledger import Revision, read_revision
from logitcache.cache.format.names import (
    GROUP_FEATURES,
    HEADLESS,
    SQUARES,
    VIEWS,
    commit_prefix,
    revision_key,
    tap_of,
    teacher_group,
)
from logitcache.cache.format.partners import partner_group
from logitcache.cache.format.squares import stored_views
from logitcache.cache.format.view_requirements import with_views
from logitcache.cache.read.view_selection import choose_views
from logitcache.cache.store.open import locate
from logitcache.cache.store.zarr_store import RecordingStore
from logitcache.cache.write.claims import MANIFEST, Claims
from logitcache.cache.write.seal import write_changed
from logitcache.cache.write.writer import CacheWriter
from logitcache.errors import UsageError, nearest

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Collection, Mapping, Sequence

    from logitcache.cache.format.groups import Group
    from logitcache.cache.format.manifest import Manifest
    from logitcache.cache.store.base import Location
    from logitcache.cache.write.claims import Wait

__all__ = [
    "Dropped",
    "drop_from_cache",
    "finish_drops",
    "manifest_without",
    "numbered_views",
    "revision_without",
]


@dataclass(frozen=True)
class Dropped:
    """What was dropped, and what the cache contains afterwards.

    Attributes:
        teachers: Names of the dropped teachers.
        features: Taps that were dropped without their teacher, as ``<teacher>/<tap>``.
        views: Ids of the dropped views.
        left_teachers: Names of the remaining teachers.
        left_views: Ids of the remaining views.
        revision: Number of the current revision; None if nothing is sealed.
    """

    teachers: tuple[str, ...]
    features: tuple[str, ...]
    views: tuple[str, ...]
    left_teachers: tuple[str, ...]
    left_views: tuple[str, ...]
    revision: int | None


def drop_from_cache(
    url: str | os.PathLike[str],
    *,
    teachers: Collection[str] = (),
    features: Collection[str] = (),
    views: Sequence[str] = (),
    on_wait: Callable[[Wait], None] | None = None,
) -> Dropped:
    """Drop teachers, taps or views; readers that have the cache open are not disturbed.

    Args:
        url: The cache; unsealed parts can be dropped, too.
        teachers: Names of teachers, which are dropped with their taps.
        features: Taps, as ``<teacher>/<tap>``.
        views: Views of all teachers: numbers, ranges or ids as :func:`.choose_views` reads them.
        on_wait: Called every two seconds while another run is waited for; by default, it is logged.

    Raises:
        UsageError: Nothing is selected, something does not exist, or nothing would be left.
    """
    location = locate(url, write=True)
    claims = Claims(location, on_wait=on_wait)
    with claims.exclusive(MANIFEST):
        writer = CacheWriter.open(location)
        finish_drops(writer)
        before = writer.manifest
        groups = {name: read_group(location, name) for name in group_names(before)}
        gone = choose_views(numbered_views(before, groups), list(views)) if views else []
        manifest = manifest_without(
            before, groups, location, set(teachers), set(features), set(gone)
        )
        names = set(group_names(before)) - set(group_names(manifest))
        if names:  # a writer of an older version would count the old commits as new ones
            manifest = manifest.changed(dropping=tuple(sorted(names))).requiring("dropping")
        if manifest.revision is not None:
            previous = read_revision(location, manifest.revision)
            revision = revision_without(previous, names, set(gone), manifest)
            manifest = manifest.changed(revision=write_changed(location, manifest, revision))
        writer.publish(manifest)
        finish_drops(writer)
        claims.sweep()
    pointer = writer.manifest.revision
    return Dropped(
        tuple(sorted(teachers)),
        tuple(sorted(features)),
        tuple(gone),
        tuple(manifest.teachers),
        tuple(manifest.views),
        None if pointer is None else pointer.number,
    )


def finish_drops(writer: CacheWriter) -> None:
    """Remove the commits of what was dropped, and the ids of dropped views in the slots of groups.

    A writer calls this before it declares anything: otherwise the old commits would count for what
    is to be computed again.
    """
    location, manifest = writer.location, writer.manifest
    for name in manifest.dropping:
        _remove_below(location, commit_prefix(*teacher_group(name).rsplit("/", 1)))
    pointer = manifest.revision
    # a run was killed before the root pointed at its revision; the same revision is written again
    unfinished = pointer is not None and location.size(revision_key(pointer.number + 1)) is not None
    changed = bool(manifest.dropping) or unfinished
    declared = {name: read_group(location, name) for name in group_names(manifest)}
    for group in row_groups(declared).values():
        gone = [view_id for view_id in group.view_ids if view_id not in manifest.views]
        for view_id in gone:
            _remove_below(location, commit_prefix(group.path, view_id))
            _remove_below(location, commit_prefix(VIEWS, view_id))
        if gone:
            _remove_squares(location, manifest)
            slots = tuple("" if slot in gone else slot for slot in group.slots)
            group = replace(group, slots=slots)
            write_attributes(RecordingStore(location), group.path, group.to_json())
            changed = True
    if not changed:
        return
    writer.manifest = manifest.changed(dropping=()).no_longer_requiring("dropping")
    if manifest.revision is None:
        writer.publish(writer.manifest)
    else:
        writer.reseal(())


def numbered_views(manifest: Manifest, groups: Mapping[str, Group]) -> list[str]:
    """Return all views, in the order in which a reader numbers them; unsealed ones last."""
    # a reader numbers the views of logits first, then those that only features have
    declared = row_groups(groups)
    ordered = sorted(declared, key=lambda name: (tap_of(name) is not None, name))
    slots = (view_id for name in ordered for view_id in declared[name].view_ids)
    return list(dict.fromkeys((*slots, *manifest.views)))


def manifest_without(
    manifest: Manifest,
    groups: Mapping[str, Group],
    where: object,
    teachers: set[str],
    features: set[str],
    views: set[str],
) -> Manifest:
    """Return the manifest without some of what it names.

    Args:
        manifest: The manifest.
        groups: All groups that it declares, by name.
        where: The cache, for error messages.
        teachers: Names of teachers to leave out.
        features: Taps to leave out, as ``<teacher>/<tap>``.
        views: Ids of views to leave out.

    Raises:
        UsageError: Nothing is selected, something does not exist, or nothing would be left.
    """
    if not teachers and not features and not views:
        raise UsageError(
            "nothing to drop is selected",
            where=where,
            hint="select teachers, features or views; logitcache inspect lists them",
        )
    known = {
        f"{name}/{tap}" for name, record in manifest.teachers.items() for tap in record.features
    }
    for what, wanted, there in (
        ("teacher", teachers, manifest.teachers.keys()),
        ("feature", features, known),
    ):
        for name in sorted(wanted - there):
            raise UsageError(
                f"no {what} {name!r} in this cache", where=where, hint=nearest(name, there)
            )
    left = {
        name: record.model_copy(
            update={
                "features": tuple(t for t in record.features if f"{name}/{t}" not in features),
                "accuracy": {v: a for v, a in record.accuracy.items() if v not in views},
            }
        )
        for name, record in manifest.teachers.items()
        if name not in teachers
    }
    bare = [name for name, record in left.items() if not record.has_logits and not record.features]
    if bare:
        raise UsageError(
            f"teacher {bare[0]!r} has no logits, so nothing of it would be left",
            where=where,
            hint=f"drop the teacher instead: --teacher {bare[0]}",
        )
    kept = {view_id: recipe for view_id, recipe in manifest.views.items() if view_id not in views}
    if not left or not kept:
        raise UsageError(
            f"no {'view' if left else 'teacher'} would be left in the cache",
            where=where,
            hint="to remove all outputs, remove the folder of the cache",
        )
    manifest = with_views(manifest.changed(teachers=left), kept)
    declared = {name: groups[name] for name in group_names(manifest)}
    for name, group in row_groups(declared).items():
        if not set(group.view_ids) - views:
            raise UsageError(
                f"the outputs of {name!r} would be left without a view",
                where=where,
                hint=f"drop them, too: --{'feature' if tap_of(name) else 'teacher'} "
                f"{name.replace('/features/', '/')}",
            )
    needed = {name for group in declared.values() for name in group.requirements}
    for feature in GROUP_FEATURES:
        if feature not in needed:
            manifest = manifest.no_longer_requiring(feature)
    if all(record.has_logits for record in left.values()):
        manifest = manifest.no_longer_requiring(HEADLESS)
    return manifest.requiring("dropped-views") if views else manifest


def revision_without(
    revision: Revision, names: set[str], views: set[str], manifest: Manifest
) -> Revision:
    """Return a revision without some groups, by name, and without some views, by id.

    Args:
        revision: What is sealed.
        names: Names of groups.
        views: Ids of views.
        manifest: What is left; squares that none of its views needs are left out, too.
    """
    squares = {path.split("/")[1] for path in revision.ledgers if path.startswith(f"{SQUARES}/")}
    unneeded = squares.difference(stored_views(manifest))
    below = [f"{teacher_group(name)}/" for name in names]
    below += [f"{partner_group(view_id)}/" for view_id in views]
    below += [f"{SQUARES}/{view_id}/" for view_id in unneeded]

    def kept(path: str) -> bool:
        return not path.startswith(tuple(below))

    def kept_ledger(path: str) -> bool:
        group, _, view_id = path.rpartition("/")
        return kept(path) and view_id not in (unneeded if group == SQUARES else views)

    return replace(
        revision,
        ledgers={path: found for path, found in revision.ledgers.items() if kept_ledger(path)},
        metadata={key: digest for key, digest in revision.metadata.items() if kept(key)},
    )


def _remove_squares(location: Location, manifest: Manifest) -> None:
    """Remove the commits of squares that no declared view needs."""
    needed = set(stored_views(manifest))
    for key in list(location.keys(f"commits/{SQUARES}")):
        if key.split("/")[2] not in needed:
            location.delete(key)


def _remove_below(location: Location, prefix: str) -> None:
    for key in list(location.keys(prefix)):
        location.delete(key)
