"""Names of temporary files, which identify the writing process.

A name ends in ``HOST_BOOT_NAMESPACE_PID_STARTED_RANDOM.partial``.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import socket
import time
import uuid

from logitcache.files import PARTIAL
from logitcache.platforms import boot_identity, process_namespace, process_started

__all__ = ["is_abandoned", "is_temporary", "temporary_name"]

_ABANDONED_SECONDS = 3600.0  # after which a file of an unknown process is abandoned
_UNKNOWN = "0"
_MARK = re.compile(r"([0-9A-Za-z-]+)_([0-9a-f]+)_([0-9a-f]+)_([0-9]{1,10})_([0-9]{1,20})_[^_]+")
_OLD_MARK = re.compile(r"([0-9A-Za-z-]+)_([0-9]{1,10})_[^_]+")  # until 0.1


def temporary_name(name: str) -> str:
    """Return a name for a file while it is written, in the same folder."""
    return f"{name}.{_mark_of(os.getpid())}_{uuid.uuid4().hex}{PARTIAL}"


def is_temporary(key: str) -> bool:
    """Return whether a key is that of a temporary file."""
    return key.endswith(PARTIAL)


def is_abandoned(key: str, modified: float | None) -> bool:
    """Return whether the process that wrote a temporary file has ended, or the file is an hour old.

    Args:
        key: Key of the file.
        modified: Modification time of the file; None if it no longer exists.
    """
    mark = key.removesuffix(PARTIAL).rpartition(".")[2]
    ended = _has_ended(mark)
    if ended is None:
        return modified is not None and time.time() - modified > _ABANDONED_SECONDS
    return ended


def _has_ended(mark: str) -> bool | None:
    """Return whether a process has ended; None where that cannot be known here."""
    found, old = _MARK.fullmatch(mark), _OLD_MARK.fullmatch(mark)
    if found is not None:
        host, boot, namespace, pid, started = found.groups()
        our_host, our_boot, our_namespace, *_ = _mark_of(os.getpid()).split("_")
        if host != our_host:
            return None
        if _UNKNOWN not in {boot, our_boot} and boot != our_boot:
            return True
        if namespace == _UNKNOWN or namespace != our_namespace:
            return None
        # a process with this number that started at another time is a later one
        return _started(int(pid)) not in {started, _UNKNOWN}
    if old is not None and old[1] == _host():
        return True if _started(int(old[2])) == "" else None
    return None


@functools.lru_cache(maxsize=4)
def _mark_of(pid: int) -> str:
    """Return the mark of this process; ``pid`` is an argument because a fork inherits the cache."""
    boot, namespace = boot_identity(), process_namespace()
    boot = _digest(boot) if boot.startswith("id:") else _UNKNOWN  # other times change with clocks
    scope = _UNKNOWN if namespace is None else _digest(namespace)
    return f"{_host()}_{boot}_{scope}_{pid}_{_started(pid) or _UNKNOWN}"


def _started(pid: int) -> str:
    """Return when a process was started; empty if there is none."""
    try:
        started = process_started(pid)
    except PermissionError:
        return _UNKNOWN
    return "" if started is None else f"{started:.0f}"


def _host() -> str:
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in socket.gethostname())[:40]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
