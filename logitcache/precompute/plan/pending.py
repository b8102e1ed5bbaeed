"""Comparison of a configuration with an existing cache: rows to compute. Nothing is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from logitcache.cache.format.names import tap_of, teacher_of
from logitcache.cache.write.writer import CacheWriter
from logitcache.precompute.plan.encodings import check_declared, stored_encoding
from logitcache.precompute.plan.recipes import check_recipes
from logitcache.precompute.plan.rows import match_rows

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from logitcache.cache.format.groups import RowGroup
    from logitcache.cache.store.base import Location
    from logitcache.data.source import Source
    from logitcache.precompute.config import PrecomputeConfig
    from logitcache.precompute.plan.rows import Positions
    from logitcache.teachers.ensemble import Ensemble

__all__ = ["GroupLack", "Lacking", "find_lacking"]


@dataclass(frozen=True)
class GroupLack:
    """Rows of one teacher or layer that a cache lacks.

    Attributes:
        is_new: Whether the cache does not have the teacher or layer at all.
        rows: Number of rows to compute, counted once per view.
        total: Number of rows that are configured, counted once per view.
    """

    is_new: bool
    rows: int
    total: int


@dataclass(frozen=True)
class Lacking:
    """Images, views and rows of a configuration that a cache lacks.

    Attributes:
        cache: Location of the cache.
        images: Number of images of the data that the cache has.
        new_images: Number of images of the data that it does not have.
        views: Number of configured views that it has.
        new_views: Number of configured views that it does not have.
        groups: Rows to compute, by name of the teacher and as ``<teacher>/features/<tap>``.
        notes: Notes on the views that precompute would print.
    """

    cache: str
    images: int
    new_images: int
    views: int
    new_views: int
    groups: dict[str, GroupLack]
    notes: tuple[str, ...]


def find_lacking(
    config: PrecomputeConfig,
    location: Location,
    source: Source,
    ensemble: Ensemble,
    taps: Collection[str],
) -> Lacking:
    """Compare a configuration with an existing cache.

    Args:
        config: Configuration of precompute.
        location: The cache.
        source: Image set, listed by the rules of the cache.
        ensemble: The teachers.
        taps: Names of the groups of features that are configured.

    Raises:
        UsageError: Precompute would refuse the views or the encodings for this cache.
        CacheError: The cache has another teacher of the same name.
        DataMismatch: The cache was created from other images.
    """
    notes = check_recipes(config, location)
    writer = CacheWriter.open(location)
    for name, member in ensemble.members.items():
        if name in writer.manifest.teachers:
            logits = member.has_logits
            encoding = stored_encoding(config, writer, name, member) if logits else None
            check_declared(writer, name, member, encoding)
    rows = match_rows(writer, source)
    known = int((rows >= 0).sum())
    view_ids = [view.id for view in config.views.views()]
    declared = writer.row_groups()
    return Lacking(
        cache=str(location),
        images=known,
        new_images=len(source.keys) - known,
        views=sum(view_id in writer.manifest.views for view_id in view_ids),
        new_views=sum(view_id not in writer.manifest.views for view_id in view_ids),
        groups={
            name: _lack(
                writer, declared.get(name), _wanted(config, name, view_ids), rows, len(source.keys)
            )
            for name in (*ensemble.with_logits, *taps)
        },
        notes=tuple(notes),
    )


def _wanted(config: PrecomputeConfig, group: str, view_ids: Sequence[str]) -> Sequence[str]:
    """Return the views of a group: all for a teacher, perhaps only the first ones for a layer."""
    tap = tap_of(group)
    if tap is None:
        return view_ids
    return view_ids[: config.teachers[teacher_of(group)].features[tap].views]


def _lack(
    writer: CacheWriter,
    group: RowGroup | None,
    view_ids: Sequence[str],
    rows: Positions,
    images: int,
) -> GroupLack:
    """Count the rows that a group lacks.

    Args:
        writer: Writer of the cache.
        group: The group; None if the cache does not have it.
        view_ids: Configured views of the group.
        rows: Position in the source of every row of the cache; -1 for padding.
        images: Number of images of the source.
    """
    total = images * len(view_ids)
    if group is None:
        return GroupLack(is_new=True, rows=total, total=total)
    per_unit = (rows.reshape(-1, group.unit_rows) >= 0).sum(axis=1)
    missing = (images - int(per_unit.sum())) * len(view_ids)  # new images
    for view_id in view_ids:
        has_view = view_id in group.view_ids
        units = writer.missing_units(group.path, view_id, group.unit_rows) if has_view else None
        missing += int(per_unit.sum() if units is None else per_unit[sorted(units)].sum())
    return GroupLack(is_new=False, rows=missing, total=total)
