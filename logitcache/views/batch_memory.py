"""Memory of batches that is used again.

A batch of 64 normalized images of 224 pixels takes 38 MB. Getting them from the system costs more
time than filling them: each page is cleared when it is first written to.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

__all__ = ["BatchMemory"]

_MOST_FREE = 6  # of a shape: the batches that are rendered ahead, and some that are used
_MOST_KINDS = 4  # shapes: the sizes of a cache's teachers, and the last batch of an epoch


class _Block:
    """Memory that arrays refer to: it is in use as long as this object exists.

    An array of numpy does not refer to the array it is a slice of, but to the owner of the memory,
    which therefore cannot be an array itself.
    """

    def __init__(self, memory: NDArray[Any]) -> None:
        self.__array_interface__ = memory.__array_interface__


class BatchMemory:
    """Arrays in memory that returns here once no array, slice or tensor refers to it.

    Several threads may use it.
    """

    def __init__(self) -> None:
        # by shape and dtype; single operations of lists and dictionaries are atomic, and a lock
        # could be held by the very thread in which an array is collected
        self._free: dict[tuple[Any, ...], list[NDArray[Any]]] = {}
        self._is_closed = False

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Return an array with arbitrary values."""
        kind = (*shape, np.dtype(dtype))
        free = self._free.get(kind)
        try:
            memory = free.pop() if free else np.empty(shape, dtype)
        except IndexError:  # another thread has taken the last one
            memory = np.empty(shape, dtype)
        block = _Block(memory)
        # the finalizer keeps the memory until the block is collected
        weakref.finalize(block, self._give_back, kind, memory).atexit = False
        return np.asarray(block)

    def close(self) -> None:
        """Release the memory that is free, and all other memory once it is."""
        self._is_closed = True
        self._free.clear()

    def _give_back(self, kind: tuple[Any, ...], memory: NDArray[Any]) -> None:
        if self._is_closed:
            return
        if kind not in self._free and len(self._free) == _MOST_KINDS:
            self._free.pop(next(iter(self._free)))
        free = self._free.setdefault(kind, [])
        if len(free) < _MOST_FREE:
            free.append(memory)
