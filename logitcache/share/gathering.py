"""Gathering of rows of several caches into the units of another one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from logitcache.cache.format.images import joined_images
from logitcache.cache.format.names import SAMPLES
from logitcache.cache.write.unit_commit import Conditions
from logitcache.share.rows import NO_ROW

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from logitcache.cache.format.ledger import Commit
    from logitcache.cache.format.placement import Placement
    from logitcache.encoding.arrays import Encoded
    from logitcache.share.rows import RowPlan
    from logitcache.share.source import SourceCache
    from logitcache.share.view_plan import ViewPlan

__all__ = ["GatheredRows", "RowOrigins"]


class RowOrigins(Protocol):
    """Rows, and the sources that they are taken from: a plan of a cache, or two caches."""

    @property
    def sources(self) -> tuple[SourceCache, ...]:
        """The sources."""
        ...

    @property
    def rows(self) -> RowPlan:
        """For each row, the row of each source."""
        ...


class GatheredRows:
    """Rows of the units of one view, gathered from units of the sources.

    Units are gathered in ascending order, so a unit of a source is decoded once: those that the
    last unit was gathered from are kept.

    Args:
        plan: The rows.
        part: The view.
        numbers: Numbers of the sources to take rows from; all that have the view by default.
    """

    def __init__(
        self, plan: RowOrigins, part: ViewPlan, numbers: Sequence[int] | None = None
    ) -> None:
        self._plan, self._part = plan, part
        self._sources = {
            number: placement
            for number, placement in part.sources.items()
            if numbers is None or number in numbers
        }
        # of the sources: their encoding may be another one than that of the new cache
        self._folders = {
            name.removesuffix("content")
            for placement in self._sources.values()
            for name in placement.specs
            if placement.page(name)
        }
        self._kept: dict[tuple[int, int], Encoded] = {}

    def of(self, unit: int) -> tuple[Encoded, Conditions]:
        """Return the arrays of a unit, and the conditions under which its rows were computed."""
        placement, size = self._part.placement, self._part.placement.unit_rows
        start = unit * size
        kept, self._kept = self._kept, {}
        left = np.ones(size, np.bool_)
        taken: Encoded = {}
        commits: list[Commit] = []
        for number, theirs in self._sources.items():
            rows = self._plan.rows.taken_from(number, start, start + size)
            here = left & (rows != NO_ROW)
            left &= ~here
            for found in np.unique(rows[here] // theirs.unit_rows).tolist():
                arrays = kept.get((number, found))
                if arrays is None:
                    arrays = self._plan.sources[number].rows(theirs, found)
                self._kept[number, found] = arrays
                commits.append(self._plan.sources[number].commits(theirs)[found])
                mine = np.flatnonzero(here & (rows // theirs.unit_rows == found))
                offsets = rows[mine] - found * theirs.unit_rows
                for name, array in arrays.items():
                    if name not in taken:
                        # outputs as the source has them: a comparison decodes other encodings, and
                        # smaller ones are converted below; label sets may be wider in the new
                        # cache, and the rest is fill
                        like = placement if placement.group == SAMPLES else theirs
                        taken[name] = _filled(like, name, size)
                    place: tuple[Any, ...] = (mine, *(slice(n) for n in array.shape[1:]))
                    taken[name][place] = array[offsets]
        if taken and self._part.convert is not None:
            taken = self._part.convert(taken)
        if not taken:  # of padding alone
            taken = {name: _filled(placement, name, size) for name in placement.specs}
            number, theirs = next(iter(self._sources.items()))
            commits = [next(iter(self._plan.sources[number].commits(theirs).values()))]
        for folder in self._folders:
            images = taken[f"{folder}content"].tolist()
            joined = joined_images(images, f"{placement.ledger}, unit {unit}")
            taken |= {f"{folder}{name}": array for name, array in joined.items()}
        return taken, _conditions(commits)


def _filled(placement: Placement, name: str, rows: int) -> NDArray[Any]:
    array = placement.empty(name, rows)
    spec = placement.specs[name]
    array[...] = b"" if placement.page(name) else "" if spec is None else spec.fill
    return array


def _conditions(commits: Sequence[Commit]) -> Conditions:
    """Return the conditions that units share; 0 or both texts where they differ."""
    batches = {commit.canonical_batch for commit in commits}
    threads = {commit.threads for commit in commits}
    versions: dict[str, dict[str, None]] = {}
    for commit in commits:
        for library, version in commit.versions.items():
            versions.setdefault(library, {})[version] = None
    return Conditions(
        canonical_batch=batches.pop() if len(batches) == 1 else 0,
        precision=" or ".join(dict.fromkeys(commit.precision for commit in commits)),
        threads=threads.pop() if len(threads) == 1 else 0,
        versions={library: " or ".join(found) for library, found in sorted(versions.items())},
    )
