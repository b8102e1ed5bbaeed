"""Measurements in the manifest of a cache, when it is sealed: encoding losses and accuracy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from logitcache.cache.format.ledger import committed_units, read_commits
from logitcache.encoding.fidelity import add_up

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from logitcache.cache.format.groups import RowGroup
    from logitcache.cache.format.manifest import Manifest
    from logitcache.cache.store.base import Location
    from logitcache.encoding.fidelity import RowSums

__all__ = ["with_measurements"]


def with_measurements(
    location: Location,
    manifest: Manifest,
    groups: Iterable[RowGroup],
    fingerprint: str,
    accuracy: Mapping[str, Mapping[str, float]],
) -> Manifest:
    """Return a manifest with what was measured.

    Args:
        location: The cache.
        manifest: Its manifest.
        groups: All its groups with rows.
        fingerprint: SHA-256 over the keys and digests of all rows.
        accuracy: Top-1 accuracy by teacher and view id.
    """
    measured = _measured_fidelity(location, groups)
    teachers = {
        name: record.model_copy(
            update={"accuracy": dict(accuracy.get(name, {})), **measured.get(name, {})}
        )
        for name, record in manifest.teachers.items()
    }
    data = manifest.data.model_copy(update={"fingerprint": fingerprint})
    return manifest.changed(teachers=teachers, data=data)


def _measured_fidelity(location: Location, groups: Iterable[RowGroup]) -> dict[str, dict[str, Any]]:
    """Return the measured losses, as fields of the records of the teachers by name.

    Args:
        location: The cache.
        groups: All its groups with rows.
    """
    fields: dict[str, dict[str, Any]] = {}
    for group in groups:
        sums = _sums(location, group)
        if not sums:
            continue
        of_teacher = fields.setdefault(group.teacher, {})
        for field, value in group.fidelity(sums).items():
            before = of_teacher.get(field)
            of_teacher[field] = value if before is None else {**before, **value}
    return fields


def _sums(location: Location, group: RowGroup) -> RowSums:
    """Return the sums over the first view of a group; empty without a measurement."""
    view = group.view_ids[0]
    units = sorted(committed_units(location, group.path, view))
    commits = read_commits(location, group.path, view, units).values()
    return add_up(commit.measured for commit in commits if commit.measured)
