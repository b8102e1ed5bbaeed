"""Accuracy of the teachers of a cache that is made from others, counted while it is written."""

from __future__ import annotations

import threading
from collections import Counter
from typing import TYPE_CHECKING

from logitcache.cache.format.groups import TeacherGroup, groups_of
from logitcache.cache.format.partners import mixed_views
from logitcache.precompute.run.summary import measured_view

if TYPE_CHECKING:
    from logitcache.cache.format.manifest import Manifest
    from logitcache.encoding.arrays import Encoded
    from logitcache.share.plan import CachePlan
    from logitcache.share.view_plan import ViewPlan

__all__ = ["AccuracyCount"]


class AccuracyCount:
    """Numbers of right outputs of each teacher, in the view that accuracy is measured on.

    Every unit of these views is counted once, by any thread. Where the accuracy is that of the
    sources, no view is measured.

    Args:
        plan: What the cache contains.
        manifest: Its manifest, with all declarations.
    """

    def __init__(self, plan: CachePlan, manifest: Manifest) -> None:
        self._labels = plan.facts.labels
        self._known = plan.accuracy
        self._views: dict[str, str | None] = {}
        self._groups: dict[tuple[str, str], TeacherGroup] = {}
        self._right, self._labeled = Counter[str](), Counter[str]()
        self._lock = threading.Lock()
        mixed = mixed_views(manifest)
        for name, group in groups_of(plan.groups, TeacherGroup).items():
            view = self._views[name] = measured_view(group, mixed)
            if view is not None and self._known is None:
                self._groups[group.path, view] = group

    def group_of(self, part: ViewPlan) -> TeacherGroup | None:
        """Return the outputs that have to be counted in a view; None for other views."""
        return self._groups.get((part.placement.group, part.placement.view))

    def count(self, group: TeacherGroup, unit: int, encoded: Encoded) -> None:
        """Count the right outputs of a unit.

        Args:
            group: What :meth:`group_of` returned for its view.
            unit: Number of the unit.
            encoded: Its rows, as the cache stores them.
        """
        labels = self._labels[unit * group.unit_rows : (unit + 1) * group.unit_rows]
        known = labels >= 0
        if not known.any():
            return
        right = (group.encoding.decode(encoded).top_class() == labels)[known]
        with self._lock:
            self._right[group.name] += int(right.sum())
            self._labeled[group.name] += int(known.sum())

    def result(self) -> dict[str, dict[str, float]]:
        """Return the accuracy by teacher and view; none of a teacher without labeled images."""
        if self._known is not None:
            return self._known
        return {
            name: {view: self._right[name] / self._labeled[name]}
            if view is not None and self._labeled[name]
            else {}
            for name, view in self._views.items()
        }
