"""Calls that differ between operating systems, each with a fallback.

Nothing else in the package calls what only POSIX has. Tests delete the POSIX names and train a
student (``tests/test_platforms.py``).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import time
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "available_processors",
    "free_bytes",
    "process_exists",
    "replace_file",
    "sync_folder",
    "tune_allocator",
]

_IS_WINDOWS = os.name == "nt"
_REPLACE_SECONDS = 5.0
# glibc's M_MMAP_THRESHOLD, M_TRIM_THRESHOLD and M_ARENA_MAX: where the first two end up by
# themselves in a long-running process
_ALLOCATOR = {-3: 32 << 20, -1: 64 << 20, -8: 1}


def available_processors() -> int:
    """Return how many processors this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows
        return os.cpu_count() or 1


def process_exists(pid: int) -> bool:
    """Return whether a process with this number runs on this machine."""
    try:
        return psutil.pid_exists(pid)
    except OverflowError:  # not a number that an operating system gives
        return False


def free_bytes(folder: Path) -> int:
    """Return how many bytes can still be written below a folder that need not exist yet."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(existing).free


def sync_folder(folder: Path) -> None:
    """Make the entries of a folder durable, where the operating system can be asked to."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:
        if _IS_WINDOWS:  # Windows opens no folders, and writes their entries by itself
            return
        raise
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(temporary: Path, path: Path) -> None:
    """Rename a file over another one; on Windows again and again while a reader has that open."""
    deadline = time.monotonic() + _REPLACE_SECONDS
    while True:
        try:
            temporary.replace(path)
        except PermissionError:
            if not _IS_WINDOWS or time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


def tune_allocator() -> None:
    """Let glibc keep freed memory for reuse; other C libraries are left alone.

    dask has its workers return every freed block at once (``MALLOC_TRIM_THRESHOLD_``), and a
    network then waits for pages: forwards took three times as long.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # no glibc
        library = ctypes.CDLL(None)
        for option, value in _ALLOCATOR.items():
            library.mallopt(option, value)
