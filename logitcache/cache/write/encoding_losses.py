"""Sums of the encoding losses in the commits of a cache, for its manifest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from logitcache.cache.format.ledger import committed_units, read_commits
from logitcache.encoding.fidelity import add_up

if TYPE_CHECKING:
    from collections.abc import Iterable

    from logitcache.cache.format.groups import RowGroup
    from logitcache.cache.store.base import Location
    from logitcache.encoding.fidelity import RowSums

__all__ = ["measured_fidelity"]


def measured_fidelity(location: Location, groups: Iterable[RowGroup]) -> dict[str, dict[str, Any]]:
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
