"""Queue of items that several runs of one cache share by claims.

Each item is claimed before it is computed, and its commits are looked up again after that, so that
two runs do not compute the same item. If a claim is lost, both compute it and commit equal bytes.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Self

from logitcache.cache.format.names import NO_VIEW, SAMPLES, commit_key
from logitcache.precompute.plan.worklist import in_words

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from logitcache.cache.format.groups import RowGroup
    from logitcache.cache.store.base import Location
    from logitcache.cache.write.claims import Claims
    from logitcache.precompute.plan.worklist import WorkItem

__all__ = ["ClaimQueue", "still_missing"]

_POLL_SECONDS = 0.5


class ClaimQueue:
    """Iterator over missing items, each claimed until it is given back.

    Items claimed by another process are tried again later, and taken over if that process dies. All
    views of a block with such an item are left to that process as long as there are other blocks,
    so that the images of a block are decoded once. Leaving the context releases all claims.

    Args:
        items: Missing items in order.
        location: The cache.
        groups: Requested groups by name.
        claims: Claims of this process.
        settle: Waits until all items that were yielded are committed; called before an item is
            claimed whose name this process still holds.
        while_waiting: Called repeatedly while other processes have claimed all remaining items,
            with a description of the item and of the process; may raise to stop.
    """

    def __init__(
        self,
        items: Iterable[WorkItem],
        location: Location,
        groups: Mapping[str, RowGroup],
        claims: Claims,
        *,
        settle: Callable[[], None],
        while_waiting: Callable[[str], None],
    ) -> None:
        self._items, self._claims = items, claims
        self._location, self._groups = location, groups
        self._settle, self._while_waiting = settle, while_waiting
        self._held: dict[tuple[str, int, bool], contextlib.ExitStack] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._give_all_back()

    def __iter__(self) -> Iterator[WorkItem]:
        """Yield the missing part of each item once it is claimed."""
        pending, sharing_blocks = list(self._items), False
        while pending:
            put_off: list[WorkItem] = []
            others: set[int] = set()  # blocks with an item that another process has claimed
            for item in pending:
                if not sharing_blocks and item.block in others:
                    put_off.append(item)
                    continue
                if still_missing(self._location, self._groups, item) is None:
                    continue
                left, is_free = self._claimed(item)
                if left is not None and is_free:
                    yield left
                elif left is not None:
                    put_off.append(item)
                    others.add(item.block)
            idle = len(put_off) == len(pending)
            if idle and sharing_blocks:
                self._while_waiting(self._waits_for(put_off))
                time.sleep(_POLL_SECONDS)
            sharing_blocks = idle
            pending = put_off

    def give_back(self, item: WorkItem) -> None:
        """Release the claim of an item that is committed."""
        claim = self._held.pop(_key(item), None)
        if claim is not None:
            claim.close()

    def _give_all_back(self) -> None:
        for claim in self._held.values():
            claim.close()
        self._held.clear()

    def _claimed(self, item: WorkItem) -> tuple[WorkItem | None, bool]:
        """Return the missing part of an item, and whether this process claimed it."""
        if any(item.claim == f"{view_id}-{block}" for view_id, block, _ in self._held):
            self._settle()
            self._give_all_back()
        with contextlib.ExitStack() as claim:
            won = claim.enter_context(self._claims.claimed(item.claim))
            # looked up again: another run may have committed it before it was claimed here
            left = still_missing(self._location, self._groups, item)
            if left is None or not won or not self._is_ready(left):
                return left, False
            self._held[_key(left)] = claim.pop_all()
        return left, True

    def _waits_for(self, items: Iterable[WorkItem]) -> str:
        """Return a description of the item and the process that are waited for."""
        waits = (self._claims.wait_for(item.claim, in_words(item)) for item in items)
        return next((str(wait) for wait in waits if wait is not None), "waiting for another run")

    def _is_ready(self, item: WorkItem) -> bool:
        """Return whether the samples of an item's block are committed, or will be before it.

        Held items are committed in order, and none of them after one that fails.
        """
        writes_samples = any(block == item.block and held for _, block, held in self._held)
        return item.samples or writes_samples or _has_samples(self._location, item)


def _key(item: WorkItem) -> tuple[str, int, bool]:
    return item.view_id, item.block, item.samples


def still_missing(
    location: Location, groups: Mapping[str, RowGroup], item: WorkItem
) -> WorkItem | None:
    """Return an item without its committed units; None if all of them are committed."""
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


def _has_samples(location: Location, item: WorkItem) -> bool:
    return location.size(commit_key(SAMPLES, NO_VIEW, item.block)) is not None
