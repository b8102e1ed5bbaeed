"""Sampled rows whose encoding losses are measured during a run.

The sample has the first rows of units of the first segment, in the first view. Rows are ordered by
a hash, so the first ones are a random sample, which depends on neither processes nor their order.
The sums of their losses are part of the unit's commit, so they are kept when a run is interrupted.
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
"""Approximate number of sampled rows per teacher."""


class FidelitySample:
    """Losses of the sampled rows of one group and view, added up batch by batch.

    Args:
        manifest: Manifest of the cache; its first segment is sampled.
        group: Group of teacher outputs or features.
        view_id: View that is being computed; only rows of the group's first view are sampled.
    """

    def __init__(self, manifest: Manifest, group: RowGroup, view_id: str) -> None:
        self._group = group
        first = manifest.segments[0]
        sampled = bool(group.view_ids) and view_id == group.view_ids[0]
        self._units = units_of(first.start, first.stop if sampled else first.start, group.unit_rows)
        self._stride = max(1, -(-len(self._units) // SAMPLED_ROWS))
        self._lost: dict[int, list[dict[str, NDArray[Any]]]] = {}

    def rows_of(self, unit: int) -> int:
        """Return the number of sampled rows of a unit; they are its first ones."""
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
        """Measure the losses of those rows that are in the sample.

        Args:
            unit: Number of the unit.
            offsets_N: Offsets of the rows in the unit, ascending.
            answers_N: Raw logits (N, C), or reduced features (N, ...).
            encoded: The same rows, encoded.
        """
        count = int(np.searchsorted(offsets_N, self.rows_of(unit)))
        if count:
            some = {name: array[:count] for name, array in encoded.items()}
            losses = self._group.row_losses(answers_N[:count], some)
            self._lost.setdefault(unit, []).append(losses)

    def take(self, unit: int) -> dict[str, float]:
        """Return the sums of a complete unit; empty if none of its rows is in the sample."""
        return add_up(self._lost.pop(unit, []))
