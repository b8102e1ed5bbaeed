"""Where a cache lies: bytes by key, written whole and durably.

Zarr's own local store renames atomically but never calls fsync, so a power cut could leave a commit
that outlives its data. Everything a cache writes goes through :meth:`LocalLocation.write` instead.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from zarr.storage import LocalStore, WrapperStore

from logitcache.cache.format import sha256
from logitcache.errors import StorageError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zarr.core.buffer import Buffer

__all__ = ["LocalLocation", "RecordingStore", "locate"]

_FULL = {errno.ENOSPC, errno.EDQUOT}
_PARTIAL = ".partial"


def locate(url: str | os.PathLike[str]) -> LocalLocation:
    """Return the location that a URL names.

    Args:
        url: A path, or ``file://`` and a path.

    Raises:
        UsageError: Another scheme.
    """
    text = os.fspath(url)
    scheme = urlsplit(text).scheme if "://" in text else ""
    if scheme == "file":
        return LocalLocation(Path(unquote(urlsplit(text).path)))
    if scheme:
        raise UsageError(
            f"caches on {scheme}:// are not supported",
            where=text,
            expected="a path on a mounted file system",
        )
    return LocalLocation(Path(text).expanduser())


class LocalLocation:
    """A folder.

    Args:
        root: The folder; it need not exist yet.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def __str__(self) -> str:
        return str(self.root)

    def read(self, key: str) -> bytes | None:
        """Return an object, None if there is none."""
        try:
            with _explained(self.root / key):
                return (self.root / key).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None

    def size(self, key: str) -> int | None:
        """Return the bytes of an object, None if there is none."""
        try:
            return (self.root / key).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write(self, key: str, content: bytes | memoryview) -> None:
        """Write an object whole: temporary file, fsync, rename, fsync of the folder.

        Raises:
            StorageError: The disk is full or failed; nothing is visible under the key.
        """
        path = self.root / key
        temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}{_PARTIAL}")
        with _explained(path):
            _make_folder(path.parent)
            try:
                with temporary.open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(path)
            except OSError:
                with contextlib.suppress(OSError):  # the first error is the one to tell
                    temporary.unlink(missing_ok=True)
                raise
            _sync_folder(path.parent)

    def delete(self, key: str) -> None:
        """Remove an object if it is there."""
        with _explained(self.root / key):
            (self.root / key).unlink(missing_ok=True)

    def names(self, prefix: str) -> list[str]:
        """Return the names of the objects directly below a prefix, sorted."""
        try:
            return sorted(
                entry.name
                for entry in os.scandir(self.root / prefix)
                if entry.is_file() and not entry.name.endswith(_PARTIAL)
            )
        except (FileNotFoundError, NotADirectoryError):
            return []

    def is_empty(self) -> bool:
        """Return whether there is nothing at all."""
        return not self.root.exists() or (
            self.root.is_dir() and next(self.root.iterdir(), None) is None
        )

    def bytes_below(self, prefix: str) -> int:
        """Return the bytes of all objects below a prefix."""
        return sum(
            path.stat().st_size for path in (self.root / prefix).rglob("*") if path.is_file()
        )

    def free_bytes(self) -> int:
        """Return the bytes that can still be written."""
        existing = next(path for path in (self.root, *self.root.parents) if path.exists())
        status = os.statvfs(existing)
        return status.f_bavail * status.f_frsize

    def store(self) -> RecordingStore:
        """Return a Zarr store over this location."""
        return RecordingStore(LocalStore(self.root), self)


class RecordingStore(WrapperStore[LocalStore]):
    """A Zarr store that writes durably and remembers what it wrote.

    Attributes:
        written: By key, the size and sha256 of every object written since the last reset.
    """

    def __init__(self, store: LocalStore, location: LocalLocation) -> None:
        super().__init__(store)
        self._location = location
        self.written: dict[str, tuple[int, str]] = {}

    def _with_store(self, store: LocalStore) -> RecordingStore:
        """Return a sibling, as zarr asks for; it shares the record."""
        sibling = RecordingStore(store, self._location)
        sibling.written = self.written
        return sibling

    async def set(self, key: str, value: Buffer) -> None:
        """Write an object through the location."""
        content = value.to_bytes()
        await asyncio.to_thread(self._location.write, key, content)
        self.written[key] = (len(content), sha256(content))

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Write an object unless it is there."""
        if not await self.exists(key):
            await self.set(key, value)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn a failing disk into an error that says what is safe."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise
    except OSError as error:
        full = error.errno in _FULL
        raise StorageError(
            "no space left" if full else "the file system refused",
            where=path,
            got=error.strerror or error,
            hint=("free some space" if full else "mend it")
            + " and run the same command again; what was committed is intact",
        ) from error


def _make_folder(folder: Path) -> None:
    """Create a folder and, durably, its entry in each parent."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
