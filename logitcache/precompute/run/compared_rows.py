"""Sampled rows whose encoding losses are measured during a run.

The first rows of every unit of the first segment, in the first view: rows are ordered by a hash, so
the first are as good a sample as any, and which they are does not depend on who computes what when.
What they lose is added up in the commit of their unit and so survives whatever ends a run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from logitcache.cache.format.placement import units_of
from logitcache.encoding.fidelity import add_up

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from logitcache.cache.format.groups import RowGroup
    from logitcache.cache.format.manifest import Manifest
    from logitcache.encoding.arrays import Encoded

__all__ = ["SAMPLED_ROWS", "FidelitySample"]

SAMPLED_ROWS = 1024
"""Of a teacher, about."""


class FidelitySample:
    """Measures the sampled rows of one group in one view, batch by batch.

    Args:
        manifest: Of the cache; its first segment is sampled.
        group: Teacher outputs, or a tap.
        view_id: The view that is being computed; nothing is measured in any but the first.
    """

    def __init__(self, manifest: Manifest, group: RowGroup, view_id: str) -> None:
        self._group = group
        first = manifest.segments[0]
        sampled = bool(group.view_ids) and view_id == group.view_ids[0]
        self._units = units_of(first.start, first.stop if sampled else first.start, group.unit_rows)
        self._stride = max(1, -(-len(self._units) // SAMPLED_ROWS))
        self._lost: dict[int, list[dict[str, NDArray[Any]]]] = {}

    def rows_of(self, unit: int) -> int:
        """Return how many rows of a unit are measured, counted from its first."""
        if unit not in self._units or (unit - self._units.start) % self._stride:
            return 0
        return SAMPLED_ROWS // -(-len(self._units) // self._stride)

    def add(
        self,
        unit: int,
        offsets_N: NDArray[np.int64],
        answers_N: NDArray[np.float32],
        encoded: Encoded,
    ) -> None:
        """Measure those of some encoded rows that are in the sample.

        Args:
            unit: Their unit.
            offsets_N: Where they are in it, ascending.
            answers_N: Raw logits (N, C), or features as they are kept (N, ...).
            encoded: The same rows as they are stored.
        """
        count = int(np.searchsorted(offsets_N, self.rows_of(unit)))
        if count:
            some = {name: array[:count] for name, array in encoded.items()}
            losses = self._group.row_losses(answers_N[:count], some)
            self._lost.setdefault(unit, []).append(losses)

    def take(self, unit: int) -> dict[str, float]:
        """Return the sums of a unit that is whole; empty where none of its rows is measured."""
        return add_up(self._lost.pop(unit, []))
