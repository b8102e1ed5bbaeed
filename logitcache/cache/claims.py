"""Who works on what: advisory files that keep two runs from doing the same work.

Nothing is correct because of a claim. A unit is whole because its commit says so, and two runs that
compute the same unit write the same bytes; a claim only saves the second one the trouble. So a
claim may be lost, stolen or deleted at any time, and a stale one is simply taken over.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
import uuid
from typing import TYPE_CHECKING, Any

from logitcache.errors import StorageError
from logitcache.platforms import process_exists

if TYPE_CHECKING:
    from collections.abc import Iterator

    from logitcache.cache.location import Location

__all__ = ["CLAIMS", "MANIFEST", "Claims"]

CLAIMS = "claims"
MANIFEST = "manifest"
"""The claim of a run that declares or seals."""

_STALE_SECONDS = 120.0
_BEAT_SECONDS = 5.0


class Claims:
    """The claims of one process on one cache.

    Args:
        location: The cache.
        stale_seconds: Age of a heartbeat after which a claim is anybody's.
    """

    def __init__(self, location: Location, *, stale_seconds: float = _STALE_SECONDS) -> None:
        self._location = location
        self._stale_seconds = stale_seconds
        self._token = uuid.uuid4().hex
        self._held: set[str] = set()
        self._beaten = 0.0

    @contextlib.contextmanager
    def claimed(self, name: str) -> Iterator[bool]:
        """Hold a claim for the length of a ``with``; False where somebody else has it."""
        key = f"{CLAIMS}/{name}.json"
        won = self._acquire(key)
        try:
            yield won
        finally:
            if won:
                self._release(key)

    @contextlib.contextmanager
    def exclusive(self, name: str) -> Iterator[None]:
        """Wait for a claim and hold it: for the moments in which the manifest is changed."""
        deadline = time.monotonic() + 3 * self._stale_seconds
        while True:
            with self.claimed(name) as won:
                if won:
                    yield
                    return
            if time.monotonic() > deadline:
                raise StorageError(
                    "another run keeps this cache to itself",
                    where=f"{self._location}/{CLAIMS}/{name}.json",
                    got=self._holder(f"{CLAIMS}/{name}.json"),
                    hint="stop that run, or remove the file if there is none",
                )
            time.sleep(self._location.poll_seconds)

    def beat(self) -> None:
        """Show that the holder is alive; cheap enough to be called after every batch."""
        now = time.monotonic()
        if now - self._beaten < min(_BEAT_SECONDS, self._stale_seconds / 4):
            return
        self._beaten = now
        for key in self._held:
            self._location.touch(key)

    def _acquire(self, key: str) -> bool:
        content = json.dumps(self._content()).encode()
        created = self._create(key, content)
        if not created and not (self._is_stale(key) and self._take_over(key, content)):
            return False
        self._held.add(key)
        return True

    def _create(self, key: str, content: bytes) -> bool:
        """Write a claim unless there is one."""
        while True:
            try:
                return self._location.create(key, content)
            except FileNotFoundError:  # another run has just removed the folder, which was empty
                continue

    def _take_over(self, key: str, content: bytes) -> bool:
        """Put our claim in the place of a dead one; of several who try, the last one has it."""
        self._location.write(key, content)
        return self._holder(key).get("token") == self._token

    def _release(self, key: str) -> None:
        self._held.discard(key)
        if self._holder(key).get("token") == self._token:
            self._location.delete(key)
        for folder in (CLAIMS, ""):  # nothing is left of a run that declared nothing
            self._location.remove_folder(folder)

    def _is_stale(self, key: str) -> bool:
        holder, age = self._holder(key), self._location.age(key)
        if age is None:
            return True
        pid = holder.get("pid")
        if holder.get("host") == socket.gethostname() and isinstance(pid, int):
            return not process_exists(pid)
        return age > self._stale_seconds

    def _holder(self, key: str) -> dict[str, Any]:
        try:
            found = json.loads(self._location.read(key) or b"{}")
        except ValueError:  # half written, by a run that is alive or was killed
            return {}
        return found if isinstance(found, dict) else {}

    def _content(self) -> dict[str, Any]:
        return {"host": socket.gethostname(), "pid": os.getpid(), "token": self._token}
