"""Files that stay open, for many small reads.

Opening a file, asking for its size and closing it take several times as long as reading ten
kilobytes of it, and threads wait for each other at each of these calls.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["OpenFiles"]

_MOST = 64  # open files: the operating system allows a process 256 or more
_CAN_READ_PARTS = hasattr(os, "pread")  # reads that share no position; Windows has none


class OpenFiles:
    """Files by key that were opened last; thread-safe.

    A copy in another process starts with none.

    Args:
        path: Returns the file of a key, after all checks.
    """

    def __init__(self, path: Callable[[str], Path]) -> None:
        self._path = path
        self._files: dict[str, _OpenFile] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._path,)

    def read(self, key: str, start: int, stop: int) -> bytes | None:
        """Return a part of a file, perhaps of one that has since been replaced.

        None where it cannot be read this way.
        """
        if not _CAN_READ_PARTS:
            return None
        try:
            # kept by this name until the part has been read, so that it is not closed before
            file = self._files.get(key) or self._opened(key)
            part = os.pread(file.descriptor, stop - start, start)
        except OSError:
            return None
        return part if len(part) == stop - start else None

    def _opened(self, key: str) -> _OpenFile:
        with self._lock:
            if key not in self._files:
                if len(self._files) >= _MOST:
                    del self._files[next(iter(self._files))]
                self._files[key] = _OpenFile(self._path(key))
            return self._files[key]


class _OpenFile:
    """A file that is closed when nothing refers to it any more."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        self._close = os.close  # which may be gone when an interpreter ends

    def __del__(self) -> None:
        descriptor = getattr(self, "descriptor", None)
        if descriptor is not None:
            self._close(descriptor)
