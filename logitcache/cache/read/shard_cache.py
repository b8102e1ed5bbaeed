"""Local copies of the shards of a remote cache, up to a given size.

A file is named after the sha256 of its content. So it is never stale, several caches may share a
folder, and a damaged file is noticed and received again. The least recently used files are removed
first.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
import warnings
from typing import TYPE_CHECKING, NamedTuple

from logitcache.cache.format.names import sha256 as sha256_of
from logitcache.files import PARTIAL
from logitcache.platforms import replace_file, user_cache
from logitcache.text import visible

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["DEFAULT_COPY_BYTES", "ShardCache", "default_copies"]

DEFAULT_COPY_BYTES = 10 * 2**30
_RESCAN_AFTER = 64  # files written between two scans for the files of other processes
_ABANDONED_SECONDS = 3600.0


class _File(NamedTuple):
    used: float
    size: int
    path: Path


def default_copies() -> Path:
    """Return the default folder of copies, in the user's cache folder."""
    return user_cache() / "shards"


class ShardCache:
    """A folder of bounded size; several processes may share it.

    Args:
        root: The folder; it need not exist yet.
        most_bytes: Largest total size of its files.
    """

    def __init__(self, root: Path, most_bytes: int = DEFAULT_COPY_BYTES) -> None:
        self.root = root
        self.most_bytes = most_bytes
        self._bytes = 0
        self._kept_since = _RESCAN_AFTER  # scan before the first file
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[ShardCache], tuple[Path, int]]:
        return ShardCache, (self.root, self.most_bytes)

    def read(self, sha256: str) -> bytes | None:
        """Return the bytes of that digest; None without a copy."""
        path = self._path(sha256)
        try:
            content = path.read_bytes()
            os.utime(path)  # the time of the last use, by which files are removed
        except OSError:  # another process removed it, or the disk fails: it is received again
            return None
        if sha256_of(content) == sha256:
            return content
        path.unlink(missing_ok=True)
        return None

    def read_part(self, sha256: str, start: int, stop: int) -> bytes | None:
        """Return a part of the bytes of that digest, which is not compared; None without a copy."""
        path = self._path(sha256)
        try:
            with path.open("rb") as file:
                file.seek(start)
                part = file.read(stop - start)
            os.utime(path)
        except OSError:
            return None
        return part if len(part) == stop - start else None

    def keep(self, sha256: str, content: bytes) -> None:
        """Keep bytes of that digest, unless they alone are too large."""
        if len(content) > self.most_bytes:
            return
        with self._lock:
            try:
                self._make_room(len(content))
                self._write(self._path(sha256), content)
            except OSError as error:
                self.most_bytes = 0  # the next write would fail as well, at the cost of a scan
                why = error.strerror or error
                text = f"no further copies of shards are kept in {self.root}: {why}"
                warnings.warn(visible(text), RuntimeWarning, stacklevel=2)

    def _path(self, sha256: str) -> Path:
        return self.root / sha256[:2] / sha256

    def _write(self, path: Path, content: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}{PARTIAL}")
        try:
            partial.write_bytes(content)
            replace_file(partial, path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise
        self._bytes += len(content)
        self._kept_since += 1

    def _make_room(self, needed: int) -> None:
        """Remove files until ``needed`` more bytes fit."""
        if self._bytes + needed <= self.most_bytes and self._kept_since < _RESCAN_AFTER:
            return
        files = sorted(self._files())
        self._kept_since = 0
        self._bytes = sum(file.size for file in files)
        for file in files:
            if self._bytes + needed <= self.most_bytes:
                return
            file.path.unlink(missing_ok=True)
            self._bytes -= file.size

    def _files(self) -> Iterator[_File]:
        """Yield all files, and remove the unfinished ones of writers that have ended."""
        for path in self.root.glob("*/*"):
            try:
                found = path.stat()
            except FileNotFoundError:  # another process removed it
                continue
            if path.name.endswith(PARTIAL):
                if time.time() - found.st_mtime > _ABANDONED_SECONDS:
                    path.unlink(missing_ok=True)
                continue
            yield _File(found.st_mtime, found.st_size, path)
