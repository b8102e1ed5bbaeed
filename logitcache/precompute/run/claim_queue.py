"""A queue of items that several runs share by claims.

Each item is claimed before it is computed and looked at once more after it is claimed, so two runs
over one cache share the work. Should a claim be lost, both compute the item and commit the same.
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
    """What is still missing of items, one after another, each claimed until it is given back.

    What others have claimed is put off, and taken over if they die. The other views of a block on
    which somebody works are left to them as long as there are other blocks, so that its images are
    decoded once. Leaving the context gives everything back.

    Args:
        items: What is missing, in order.
        location: The cache.
        groups: What is requested, by name.
        claims: Of this process.
        settle: Called before the claim of an item that is still held is acquired again: commits it.
        while_waiting: Called now and then while everything that is left is somebody else's, with
            what is waited for and for which process, in words; may raise to stop.
        poll_seconds: Between two looks at what others do.
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
        poll_seconds: float = _POLL_SECONDS,
    ) -> None:
        self._items, self._claims = items, claims
        self._location, self._groups = location, groups
        self._settle, self._while_waiting = settle, while_waiting
        self._poll_seconds = poll_seconds
        self._held: dict[tuple[str, int, bool], contextlib.ExitStack] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._give_all_back()

    def __iter__(self) -> Iterator[WorkItem]:
        """Yield what is left of each item once it is claimed."""
        pending, sharing_blocks = list(self._items), False
        while pending:
            put_off: list[WorkItem] = []
            others: set[int] = set()  # blocks on which somebody else works
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
                time.sleep(self._poll_seconds)
            sharing_blocks = idle
            pending = put_off

    def give_back(self, item: WorkItem) -> None:
        """Let go of the claim of an item that is committed."""
        claim = self._held.pop(_key(item), None)
        if claim is not None:
            claim.close()

    def _give_all_back(self) -> None:
        for claim in self._held.values():
            claim.close()
        self._held.clear()

    def _claimed(self, item: WorkItem) -> tuple[WorkItem | None, bool]:
        """Return what is left of an item, and whether it is ours to compute now."""
        if any(item.claim == f"{view_id}-{block}" for view_id, block, _ in self._held):
            self._settle()
            self._give_all_back()
        with contextlib.ExitStack() as claim:
            won = claim.enter_context(self._claims.claimed(item.claim))
            # again, now that it is claimed: another run may have committed it in between
            left = still_missing(self._location, self._groups, item)
            if left is None or not won or not self._is_ready(left):
                return left, False
            self._held[_key(left)] = claim.pop_all()
        return left, True

    def _waits_for(self, items: Iterable[WorkItem]) -> str:
        """Return in words what is waited for."""
        waits = (self._claims.wait_for(item.claim, in_words(item)) for item in items)
        return next((str(wait) for wait in waits if wait is not None), "waiting for another run")

    def _is_ready(self, item: WorkItem) -> bool:
        """Return whether an item may be computed: an output is not committed before its image.

        Items that are held are committed in their order, and nothing after one that fails.
        """
        writes_samples = any(block == item.block and held for _, block, held in self._held)
        return item.samples or writes_samples or _has_samples(self._location, item)


def _key(item: WorkItem) -> tuple[str, int, bool]:
    return item.view_id, item.block, item.samples


def still_missing(
    location: Location, groups: Mapping[str, RowGroup], item: WorkItem
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


def _has_samples(location: Location, item: WorkItem) -> bool:
    return location.size(commit_key(SAMPLES, NO_VIEW, item.block)) is not None
