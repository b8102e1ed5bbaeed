"""Sums of the encoding losses in the commits of a cache, for its manifest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from logitcache.cache.format.groups import FeatureGroup
from logitcache.cache.format.ledger import committed_units, read_commits
from logitcache.cache.format.manifest import FeatureFidelityRecord, FidelityRecord
from logitcache.encoding.feature_fidelity import feature_fidelity_of
from logitcache.encoding.fidelity import add_up, fidelity_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from logitcache.cache.format.groups import Group
    from logitcache.cache.store.base import Location
    from logitcache.encoding.fidelity import RowSums

__all__ = ["measured_fidelity"]


def measured_fidelity(location: Location, groups: Iterable[Group]) -> dict[str, dict[str, Any]]:
    """Return what was measured, as fields of the teachers' records by name.

    Args:
        location: The cache.
        groups: All its groups.
    """
    fields: dict[str, dict[str, Any]] = {}
    for group in groups:
        sums = _sums(location, group)
        if not sums:
            continue
        if isinstance(group, FeatureGroup):
            found = FeatureFidelityRecord.model_validate(feature_fidelity_of(sums).to_json())
            losses = fields.setdefault(group.teacher, {}).setdefault("feature_fidelity", {})
            losses[group.tap] = found
        else:
            said = FidelityRecord.model_validate(fidelity_of(sums).to_json())
            fields.setdefault(group.name, {})["fidelity"] = said
    return fields


def _sums(location: Location, group: Group) -> RowSums:
    """Add up what the units of a group's first view lost; empty where nothing was measured."""
    view = group.view_ids[0]
    units = sorted(committed_units(location, group.path, view))
    commits = read_commits(location, group.path, view, units).values()
    return add_up(commit.measured for commit in commits if commit.measured)
