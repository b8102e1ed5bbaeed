"""One view of a group of a cache that is made from others, and where its units come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from logitcache.cache.format.placement import Placement
    from logitcache.encoding.arrays import Encoded
    from logitcache.share.rows import RowPlan
    from logitcache.share.source import SourceCache

__all__ = ["ViewPlan"]


@dataclass(frozen=True)
class ViewPlan:
    """One view of a group, and the sources that have rows of it.

    Attributes:
        placement: Placement of its arrays in the new cache.
        sources: Placements in the sources, by number of the source, in order of preference.
        measured: Whether units that are copied keep the measured encoding losses of their commits.
        mixes: Whether it has mixing partners, which are offsets in a block.
        by_class: Whether its rows are classes instead of images.
        convert: Function that encodes rows of the sources as the new cache stores them; None where
            they stay as they are.
    """

    placement: Placement
    sources: Mapping[int, Placement]
    measured: bool = False
    mixes: bool = False
    by_class: bool = False
    convert: Callable[[Encoded], Encoded] | None = None

    def units(self, rows: RowPlan) -> list[int]:
        """Return its units, ascending."""
        return self.placement.units(rows.segments, rows.unit_rows)

    def whole_unit(
        self, sources: Sequence[SourceCache], rows: RowPlan, unit: int
    ) -> tuple[int, int] | None:
        """Return number and unit of a source with the same rows; None without one."""
        size = self.placement.unit_rows
        if self.convert is not None:
            return None
        for number, placement in self.sources.items():
            if self.by_class:
                return number, unit
            if placement.unit_rows == size:
                theirs = rows.whole_unit(number, sources[number], unit, size)
                if theirs is not None:
                    return number, theirs
        return None
