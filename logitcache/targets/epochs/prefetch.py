"""Reading ahead in a background thread."""

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
    """Items in order, each with the result of reading it; while one is used, the next is read.

    Args:
        items: Items to read. The first is drawn in the thread, the others by the caller of
            :meth:`walk`.
        read: Reads an item, in the thread; its errors are raised when the item is reached.
        thread: Executor with a single thread, so that items are read in the order of the requests.
    """

    def __init__(
        self, items: Iterable[Item], read: Callable[[Item], Result], thread: Executor
    ) -> None:
        self._items = iter(items)
        self._read = read
        self._thread = thread
        self._begun: Future[list[tuple[Item, Result]]] | None = None

    def begin(self) -> None:
        """Start to read the first item."""
        # islice: the item is drawn in the thread, too, since that may read data from disk
        self._begun = self._thread.submit(self._read_all, islice(self._items, 1))

    def drop(self) -> None:
        """Discard the first item, whether it has been read or not."""
        if self._begun is not None:
            self._begun.cancel()
            self._begun = None

    def walk(self, at_last: Callable[[], None] | None = None) -> Iterator[tuple[Item, Result]]:
        """Yield each item with its result; can be called once.

        Args:
            at_last: Called when all items have been requested, before the last one is yielded.
        """
        if self._begun is None:
            self.begin()
        assert self._begun is not None
        waiting = deque([self._begun])
        self._begun = None
        try:
            waiting[0].result()  # the thread draws the first item, and iterators are not shared
            for item in self._items:
                waiting.append(self._thread.submit(self._read_all, [item]))
                yield from waiting.popleft().result()
            if at_last is not None:
                at_last()
            yield from waiting.popleft().result()
        finally:  # also if the caller stops early and the generator is closed
            for future in waiting:
                future.cancel()

    def _read_all(self, items: Iterable[Item]) -> list[tuple[Item, Result]]:
        return [(item, self._read(item)) for item in items]
