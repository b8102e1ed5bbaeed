"""A thread that reads ahead: the next item, and the first one after the end."""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Executor, Future

__all__ = ["ReadAhead"]

Item = TypeVar("Item")
Result = TypeVar("Result")


class ReadAhead(Generic[Item, Result]):
    """Items in order, each with what was read for it; while one is used, the next is read.

    Args:
        items: What to read. The first is drawn in the thread, the others by who walks.
        read: Called in the thread; what it raises is raised at its item.
        thread: Of one worker, so that items are read in the order in which they are requested.
    """

    def __init__(
        self, items: Iterable[Item], read: Callable[[Item], Result], thread: Executor
    ) -> None:
        self._items = iter(items)
        self._read = read
        self._thread = thread
        self._begun: Future[list[tuple[Item, Result]]] | None = None

    def begin(self) -> None:
        """Let the first item be read, before anybody walks."""
        self._begun = self._thread.submit(self._read_first)

    def drop(self) -> None:
        """Forget what was begun: it is not read, or what was read is not kept."""
        if self._begun is not None:
            self._begun.cancel()
            self._begun = None

    def walk(self, at_last: Callable[[], None] | None = None) -> Iterator[tuple[Item, Result]]:
        """Yield each item with what was read for it, once.

        Args:
            at_last: Called when all items are requested, before the last one is yielded.
        """
        if self._begun is None:
            self.begin()
        assert self._begun is not None
        waiting = deque([self._begun])
        self._begun = None
        try:
            waiting[0].result()  # the second item cannot be drawn before the first
            for item in self._items:
                waiting.append(self._thread.submit(self._read_one, item))
                yield from waiting.popleft().result()
            if at_last is not None:
                at_last()
            yield from waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def _read_first(self) -> list[tuple[Item, Result]]:
        """Read the first item, if there is one."""
        return [(item, self._read(item)) for item in islice(self._items, 1)]

    def _read_one(self, item: Item) -> list[tuple[Item, Result]]:
        return [(item, self._read(item))]
