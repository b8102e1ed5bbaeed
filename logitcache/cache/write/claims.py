"""Claims: advisory files that prevent two runs from doing the same work.

Correctness never depends on a claim. A unit is complete if it has a commit, and two runs that
compute the same unit write the same bytes; a claim only saves the second run the work. So a claim
may be lost, stolen or deleted at any time, and a stale one is taken over.

A process touches its claims regularly while it runs. A claim is stale once its process has
certainly ended, or once a waiting process has seen no change of it for two minutes by its own
clock: then the process is stopped, or its machine has failed. Where files can be locked, a process
locks its claims while it runs, which shows its end to other containers of its machine.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from logitcache.cache.format.names import CLAIMS, MANIFEST
from logitcache.cache.write.claim_holder import MOST_BYTES, Holder, new_token
from logitcache.cache.write.unchanged import Unchanged
from logitcache.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from logitcache.cache.store.base import Location

__all__ = [
    "CLAIMS",
    "MANIFEST",
    "STALE_SECONDS",
    "TRIAL",
    "Claims",
    "Wait",
    "is_left",
    "read_holder",
]

TRIAL = "trial"
"""Prefix of the names of test objects, which are written under the claim of the manifest."""
STALE_SECONDS = 120.0
"""Time without a change after which a claim is stale."""

_BEAT_SECONDS = 5.0
_PATIENCE = 3  # times STALE_SECONDS: how long another run is waited for
_REPORT_SECONDS = 2.0
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wait:
    """Wait for the claim of another process; ``str()`` is one line.

    Attributes:
        what: The claimed object, as text.
        holder: The process that holds the claim.
        seconds: Time that this run has waited.
        silent: Time since the last change of the claim.
        stale_seconds: Time without a change after which the claim is taken over.
    """

    what: str
    holder: Holder
    seconds: float
    silent: float
    stale_seconds: float

    def __str__(self) -> str:
        return (
            f"waiting for {self.what}, {self.seconds:.0f} s so far: claimed by {self.holder}, "
            f"last heartbeat {self.silent:.0f} s ago, "
            f"taken over after {self.stale_seconds:.0f} s without one"
        )


class Claims:
    """The claims of one process on one cache.

    While a claim is held, a thread touches it, so that long batches and long seals keep it.

    Args:
        location: The cache.
        stale_seconds: Time without a change after which a claim is taken over.
        on_wait: Called every two seconds while :meth:`exclusive` waits; by default, it is logged.
        clock: Function that returns seconds, from any point in time.
    """

    def __init__(
        self,
        location: Location,
        *,
        stale_seconds: float | None = None,
        on_wait: Callable[[Wait], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._location, self._clock = location, clock
        self._stale_seconds = STALE_SECONDS if stale_seconds is None else stale_seconds
        self._on_wait = on_wait or (lambda wait: _LOG.warning("%s", wait))
        self._token = new_token()
        self._lock = threading.Lock()
        self._held: dict[str, int | None] = {}
        self._stop = threading.Event()
        self._unchanged = Unchanged(self._stale_seconds / 4, clock)
        self._waits: dict[str, tuple[float, Holder, float]] = {}

    @contextlib.contextmanager
    def claimed(self, name: str) -> Iterator[bool]:
        """Hold a claim for the length of a ``with``; False where another process holds it."""
        key = _key(name)
        won = self._acquire(key)
        try:
            yield won
        finally:
            if won:
                self._release(key)

    @contextlib.contextmanager
    def exclusive(self, name: str) -> Iterator[None]:
        """Wait for a claim and hold it, while the manifest is changed.

        Raises:
            StorageError: Another run holds it for too long, and sends heartbeats.
        """
        deadline = self._clock() + _PATIENCE * self._stale_seconds
        reported = self._clock() - _REPORT_SECONDS / 2  # the first report comes after half the time
        while True:
            with self.claimed(name) as won:
                if won:
                    yield
                    return
            now, wait = self._clock(), self.wait_for(name, "the manifest of the cache")
            if wait is not None and now - reported >= _REPORT_SECONDS:
                reported = now
                self._on_wait(wait)
            if now > deadline:
                raise StorageError(
                    "another process holds the manifest lock",
                    where=f"{self._location}/{_key(name)}",
                    got=wait,
                    hint="wait for that run or stop it, then re-run the same command",
                )
            time.sleep(self._location.poll_seconds)

    def wait_for(self, name: str, what: str) -> Wait | None:
        """Return the wait for a claim, as of the last look at it; None without one.

        Args:
            name: Name of the claim.
            what: The claimed object, as text.
        """
        found = self._waits.get(_key(name))
        if found is None:
            return None
        since, holder, silent = found
        return Wait(what, holder, self._clock() - since, silent, self._stale_seconds)

    def remove_if_stale(self, name: str) -> bool:
        """Look at the claim of another process; return whether it was stale and is removed."""
        key = _key(name)
        if key in self._held or not self._is_stale(key):
            return False
        self._location.delete(key)
        self._remove_folders()
        return True

    def holds(self, name: str) -> bool:
        """Look at a claim, and return whether this process still holds it."""
        key = _key(name)
        return key in self._held and read_holder(self._location, key).token == self._token

    def sweep(self) -> list[str]:
        """Remove the claims of processes that have ended; return their keys.

        Claims that this process has observed without a change for long enough are removed as well.
        The caller has to hold :data:`MANIFEST`: then test objects are those of killed runs.
        """
        swept = []
        for file in self._location.names(CLAIMS):
            key = f"{CLAIMS}/{file}"
            if key in self._held:
                continue
            observed = key in self._waits and self._is_stale(key)
            if observed or file.startswith(TRIAL) or is_left(self._location, key):
                self._location.delete(key)
                swept.append(key)
        return swept

    def _acquire(self, key: str) -> bool:
        holder = Holder.this_process(self._token)
        content = _encoded(holder)
        created = self._create(key, content)
        if not created and not (self._is_stale(key) and self._take_over(key, content)):
            return False
        self._forget(key)
        # the content names the lock only once it is taken: an unlocked claim would look abandoned
        lock = self._location.lock(key, content, _encoded(replace(holder, locked=True)))
        with self._lock:
            self._held[key] = lock
            if len(self._held) == 1:
                self._stop = threading.Event()  # the last one has ended the previous thread
                arguments = (self._stop,)
                threading.Thread(target=self._beat, args=arguments, daemon=True).start()
        return True

    def _create(self, key: str, content: bytes) -> bool:
        """Write a claim unless there is one."""
        while True:
            try:
                return self._location.create(key, content)
            except FileNotFoundError:  # another run has just removed the folder, which was empty
                continue

    def _take_over(self, key: str, content: bytes) -> bool:
        """Replace a stale claim by ours; of several processes that try, the last one gets it."""
        self._location.write(key, content)
        time.sleep(self._location.poll_seconds)  # another run may have found it stale as well
        return read_holder(self._location, key).token == self._token

    def _release(self, key: str) -> None:
        with self._lock:
            lock = self._held.pop(key)
            if not self._held:
                self._stop.set()
            # under the lock, so that the other thread does not touch a claim that is removed
            if read_holder(self._location, key).token == self._token:
                self._location.delete(key)
            if lock is not None:
                os.close(lock)
        self._remove_folders()

    def _remove_folders(self) -> None:
        for folder in (CLAIMS, ""):  # the root, too: a run that declared nothing leaves no folder
            self._location.remove_folder(folder)

    def _is_stale(self, key: str) -> bool:
        """Look at a claim, and return whether it may be taken over."""
        content = _content(self._location, key)
        modified = self._location.modified(key)
        if modified is None:
            self._forget(key)
            return True
        holder = Holder.parse(content)
        silent = self._unchanged.seconds(key, (content, modified))
        since, _, _ = self._waits.get(key, (self._clock(), holder, silent))
        self._waits[key] = since, holder, silent
        return silent > self._stale_seconds or is_left(self._location, key)

    def _forget(self, key: str) -> None:
        self._unchanged.forget(key)
        self._waits.pop(key, None)

    def _beat(self, stop: threading.Event) -> None:
        """Touch all held claims until there are none."""
        while not stop.wait(min(_BEAT_SECONDS, self._stale_seconds / 8)):
            for key in list(self._held):
                # a store that fails also fails where outputs are written, and is reported there
                with self._lock, contextlib.suppress(StorageError):
                    # a claim that another run has taken over is not touched
                    if key in self._held and (
                        read_holder(self._location, key).token == self._token
                    ):
                        self._location.touch(key)


def is_left(location: Location, key: str) -> bool:
    """Return whether the process of a claim has certainly ended."""
    holder = read_holder(location, key)
    if holder.has_ended:
        return True
    if not holder.locked or not holder.is_of_this_boot or location.is_locked(key) is not False:
        return False
    return read_holder(location, key) == holder  # not the claim of the next process


def read_holder(location: Location, key: str) -> Holder:
    """Return the process that a claim names."""
    return Holder.parse(_content(location, key))


def _content(location: Location, key: str) -> bytes | None:
    """Return the content of a claim; None for a file that is too large to be one."""
    size = location.size(key)
    return location.read(key) if size is not None and size <= MOST_BYTES else None


def _encoded(holder: Holder) -> bytes:
    return json.dumps(holder.to_json()).encode()


def _key(name: str) -> str:
    return f"{CLAIMS}/{name}.json"
