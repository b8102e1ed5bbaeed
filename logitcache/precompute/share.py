"""Working off a list that other runs may be working off too.

Each item is claimed before it is computed and looked at once more after it is claimed, so two runs
over one cache share the work. Should a claim be lost, both compute the item and commit the same.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from logitcache.cache.format import NO_VIEW, SAMPLES, commit_key

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Mapping

    from logitcache.cache.claims import Claims
    from logitcache.cache.groups import Group
    from logitcache.cache.location import Location
    from logitcache.precompute.worklist import WorkItem

__all__ = ["still_missing", "turns"]

_POLL_SECONDS = 0.5


def turns(
    items: Iterable[WorkItem],
    location: Location,
    groups: Mapping[str, Group],
    claims: Claims,
    *,
    while_waiting: Callable[[], None],
    poll_seconds: float = _POLL_SECONDS,
) -> Generator[WorkItem]:
    """Yield what is still missing of each item, claimed until the next one is asked for.

    What others have claimed is put off, and taken over if they die.

    Args:
        items: What is missing, in order.
        location: The cache.
        groups: What is asked for, by name.
        claims: Of this process.
        while_waiting: Called while everything that is left is somebody else's; may raise to stop.
        poll_seconds: Between two looks at what others do.
    """
    pending = list(items)
    while pending:
        put_off = []
        for item in pending:
            if still_missing(location, groups, item) is None:
                continue
            with claims.claimed(f"{item.view_id}-{item.block}") as won:
                left = still_missing(location, groups, item)
                if won and left is not None and _is_ready(location, left):
                    yield left
                elif left is not None:
                    put_off.append(item)
        if len(put_off) == len(pending):
            while_waiting()
            time.sleep(poll_seconds)
        pending = put_off


def still_missing(
    location: Location, groups: Mapping[str, Group], item: WorkItem
) -> WorkItem | None:
    """Return an item without what has been committed since; None if that is all of it."""
    units = {
        name: tuple(
            unit
            for unit in wanted
            if location.size(commit_key(groups[name].path, item.view_id, unit)) is None
        )
        for name, wanted in item.units.items()
    }
    units = {name: wanted for name, wanted in units.items() if wanted}
    samples = item.samples and not _has_samples(location, item)
    return replace(item, samples=samples, units=units) if samples or units else None


def _is_ready(location: Location, item: WorkItem) -> bool:
    """Return whether an item may be computed: an answer is not committed before its image."""
    return item.samples or _has_samples(location, item)


def _has_samples(location: Location, item: WorkItem) -> bool:
    return location.size(commit_key(SAMPLES, NO_VIEW, item.block)) is not None
