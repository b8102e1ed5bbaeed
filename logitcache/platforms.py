"""Calls that differ between operating systems, each with a fallback.

No other module calls functions of POSIX only. Tests delete these functions and train a student
(``tests/test_platforms.py``).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import time
from pathlib import Path
from typing import Any

import psutil

fcntl: Any = None
with contextlib.suppress(ImportError):  # Windows
    import fcntl

__all__ = [
    "available_processors",
    "boot_identity",
    "free_bytes",
    "is_locked",
    "lock_file",
    "process_namespace",
    "process_started",
    "replace_file",
    "sync_folder",
    "tune_allocator",
    "user_cache",
]

_IS_WINDOWS = os.name == "nt"
_PROC = Path("/proc")
_START_FIELD = 19  # of /proc/PID/stat, counted from the state, which follows the program's name
_ENDED = {"Z", "X", "x"}  # states of a process that no process has waited for yet
_REPLACE_SECONDS = 5.0
# glibc's M_MMAP_THRESHOLD, M_TRIM_THRESHOLD and M_ARENA_MAX; the first two at the values that
# glibc itself reaches in a long-running process
_ALLOCATOR = {-3: 32 << 20, -1: 64 << 20, -8: 1}


def available_processors() -> int:
    """Return the number of processors that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows
        return os.cpu_count() or 1


def user_cache() -> Path:
    """Return the folder of this program below the user's folder for caches."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "logitcache"


def boot_identity() -> str:
    """Return an identifier of this boot of the machine: ``id:…`` on Linux, or else ``time:…``."""
    try:
        return "id:" + (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # no Linux
        return f"time:{psutil.boot_time():.0f}"


def process_namespace() -> str | None:
    """Return the namespace of process numbers; None where it is not known.

    On Linux it is the PID namespace; a container has its own.
    """
    if not (_PROC / "self").exists():
        return "machine"
    try:
        if (_PROC / "self").readlink().name != str(os.getpid()):
            return None  # /proc shows the processes of another namespace
        return f"pid:{(_PROC / 'self/ns/pid').stat().st_ino}"
    except OSError:
        return None


def process_started(pid: int) -> float | None:
    """Return the start time of a process; None if it has ended or never existed.

    On Linux the time is in clock ticks since the boot, so that setting the clock does not change
    it. Compare it only with values of this function on the same machine.

    Args:
        pid: Number of the process, from 1.

    Raises:
        PermissionError: The process exists, and this one may not inspect it.
    """
    if not (_PROC / "self").exists():
        return _started_elsewhere(pid)
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except ProcessLookupError:
        return None
    except FileNotFoundError:
        _refuse_hidden(pid)
        return None
    # the name of the program, in parentheses, may itself contain spaces and parentheses
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in _ENDED else float(fields[_START_FIELD])


def _refuse_hidden(pid: int) -> None:
    """Raise PermissionError for a process that exists: /proc may be mounted with ``hidepid``."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return
    raise PermissionError(f"process {pid} is hidden")


def _started_elsewhere(pid: int) -> float | None:
    """Return the start time of a process where there is no /proc."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except (psutil.NoSuchProcess, OverflowError):
        return None
    except psutil.AccessDenied as error:
        raise PermissionError(str(error)) from None


def lock_file(path: Path, before: bytes, content: bytes) -> int | None:
    """Lock a file until its descriptor is closed or this process has ended, and write into it.

    Args:
        path: The file.
        before: Content that it must have.
        content: Content to write.

    Returns:
        The descriptor; None where the file is locked, has other content, or cannot be locked. Then
        nothing is written.
    """
    if fcntl is None:
        return None
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # compared under the lock: the file may have been replaced since it was opened
        if os.pread(descriptor, len(before) + 1, 0) == before:
            os.pwrite(descriptor, content, 0)
            os.ftruncate(descriptor, len(content))
            return descriptor
        os.close(descriptor)
    except OSError:  # it is locked, or this file system has no locks
        os.close(descriptor)
    return None


def is_locked(path: Path) -> bool | None:
    """Return whether a process of this machine has locked a file; None where that is not known."""
    if fcntl is None:
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        # a shared lock, so that two processes that test at the same time do not see each other's
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    else:
        return False
    finally:
        os.close(descriptor)


def free_bytes(folder: Path) -> int:
    """Return the free bytes of the disk of a folder, which need not exist yet."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(existing).free


def sync_folder(folder: Path) -> None:
    """Make the entries of a folder durable, where the operating system can do that."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:
        if _IS_WINDOWS:  # Windows cannot open folders, and writes their entries itself
            return
        raise
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(temporary: Path, path: Path) -> None:
    """Rename a file over another one; retried on Windows while a reader has that one open."""
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
    """Configure glibc to keep freed memory for reuse; other C libraries are not changed.

    Without it each large array is mapped and unmapped, and its pages fault in again. dask even
    configures its workers to return every freed block at once (``MALLOC_TRIM_THRESHOLD_``): forward
    passes took three times as long.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # no glibc
        library = ctypes.CDLL(None)
        for option, value in _ALLOCATOR.items():
            library.mallopt(option, value)
