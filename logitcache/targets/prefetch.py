"""One thread that reads ahead."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["read_ahead"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def read_ahead(
    items: Iterable[Item], read: Callable[[Item], Result]
) -> Iterator[tuple[Item, Result]]:
    """Yield each item with what was read for it; the next one is read meanwhile.

    Args:
        items: What to read, in order; drawn from the calling thread.
        read: Called in a thread; what it raises is raised here, at its item.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="targets") as pool:
        pending = None
        for item in items:
            following = (item, pool.submit(read, item))
            if pending is not None:
                yield pending[0], pending[1].result()
            pending = following
        if pending is not None:
            yield pending[0], pending[1].result()
