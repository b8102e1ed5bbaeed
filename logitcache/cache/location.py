"""Where a cache lies: bytes by key, written whole and durably.

Zarr's own local store renames atomically but never calls fsync, so a power cut could leave a commit
that outlives its data. Everything a cache writes goes through :meth:`LocalLocation.write` instead.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import socket
import time
import uuid
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from zarr.storage import LocalStore, WrapperStore

from logitcache.cache.format import sha256
from logitcache.errors import CacheDamaged, StorageError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

__all__ = ["LocalLocation", "RecordingStore", "is_temporary", "locate", "process_lives"]

_FULL = {errno.ENOSPC, errno.EDQUOT}
_PARTIAL = ".partial"
_ABANDONED_SECONDS = 3600.0  # after which a temporary file of another host is nobody's
_HOST = "".join(c if c.isalnum() else "-" for c in socket.gethostname())[:40]


def locate(url: str | os.PathLike[str]) -> LocalLocation:
    """Return the location that a URL names.

    Args:
        url: A path, or ``file://`` and a path.

    Raises:
        UsageError: Another scheme.
    """
    text = os.fspath(url)
    try:
        scheme = urlsplit(text).scheme if "://" in text else ""
    except ValueError as error:
        raise UsageError("not a URL", where=repr(text), got=error) from None
    if "\0" in unquote(text) or not text:
        raise UsageError("not a path", where=repr(text))
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

    def path(self, key: str) -> Path:
        """Return the file of a key.

        Raises:
            CacheDamaged: The key leads out of the cache.
        """
        parts = PurePosixPath(key).parts
        if ".." in parts or key.startswith("/") or "\0" in key or "\\" in key:
            raise CacheDamaged("a key leads out of the cache", where=self.root, got=repr(key)[:200])
        return self.root / key

    def read(self, key: str) -> bytes | None:
        """Return an object, None if there is none."""
        path = self.path(key)
        try:
            with _explained(path):
                return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None

    def size(self, key: str) -> int | None:
        """Return the bytes of an object, None if there is none."""
        path = self.path(key)
        try:
            with _explained(path):
                return path.stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def stamp(self, key: str) -> tuple[int, int, int] | None:
        """Return what changes when an object is replaced: size, inode, time; None without one."""
        path = self.path(key)
        try:
            with _explained(path):
                found = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return found.st_size, found.st_ino, found.st_mtime_ns

    def digest(self, key: str) -> tuple[int, str] | None:
        """Return size and sha256 of an object, read in small pieces; None if there is none."""
        path = self.path(key)
        try:
            with _explained(path), path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
                return file.tell(), found
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None

    def tail(self, key: str, count: int) -> bytes:
        """Return the last bytes of an object that is there."""
        with _explained(self.path(key)), self.path(key).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - count))
            return file.read()

    def write(self, key: str, content: bytes | memoryview) -> None:
        """Write an object whole: temporary file, fsync, rename, fsync of the folder.

        Raises:
            StorageError: The disk is full or failed; nothing is visible under the key.
        """
        path = self.path(key)
        temporary = path.with_name(_temporary_name(path.name))
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

    def create(self, key: str, content: bytes) -> bool:
        """Write an object unless there is one; return whether it was written.

        Neither atomic in its content nor synced: for claims, which nothing depends on.
        """
        path = self.path(key)
        with _explained(path):
            try:
                _make_folder(path.parent)
                with path.open("xb") as file:
                    file.write(content)
            except FileExistsError:
                return False
        return True

    def touch(self, key: str) -> None:
        """Renew the time of an object if it is there."""
        with contextlib.suppress(FileNotFoundError), _explained(self.path(key)):
            os.utime(self.path(key))

    def remove_folder(self, prefix: str) -> None:
        """Remove a folder if nothing is in it."""
        with contextlib.suppress(OSError):
            self.path(prefix).rmdir()

    def delete(self, key: str) -> None:
        """Remove an object if it is there."""
        with _explained(self.path(key)), contextlib.suppress(NotADirectoryError):
            self.path(key).unlink(missing_ok=True)

    def names(self, prefix: str) -> list[str]:
        """Return the names of the objects directly below a prefix, sorted."""
        try:
            return sorted(
                entry.name
                for entry in os.scandir(self.path(prefix))
                if entry.is_file() and not entry.name.endswith(_PARTIAL)
            )
        except (FileNotFoundError, NotADirectoryError):
            return []

    def keys(self) -> Iterator[str]:
        """Yield the key of every file, temporary ones included."""
        for folder, _, files in os.walk(self.root):
            for name in files:
                yield (Path(folder) / name).relative_to(self.root).as_posix()

    def sweep(self) -> list[str]:
        """Remove temporary files whose writer is gone; return their keys."""
        swept = [key for key in self.keys() if is_temporary(key) and self._is_abandoned(key)]
        for key in swept:
            self.delete(key)
        return swept

    def _is_abandoned(self, key: str) -> bool:
        writer = key.removesuffix(_PARTIAL).rpartition(".")[2]
        host, _, rest = writer.rpartition("_")[0].rpartition("_")
        if host == _HOST and rest.isdecimal():
            return not process_lives(int(rest))
        stamp = self.stamp(key)
        return stamp is not None and time.time() - stamp[2] / 1e9 > _ABANDONED_SECONDS

    def is_empty(self) -> bool:
        """Return whether there is nothing at all, but for claims of runs that begin."""
        return not self.root.exists() or (
            self.root.is_dir() and all(path.name == "claims" for path in self.root.iterdir())
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
        replacing: Keys that read as absent while they are written whole: zarr would merge a shard
            into what an interrupted run left, and deleting it first would open a gap.
    """

    def __init__(self, store: LocalStore, location: LocalLocation) -> None:
        super().__init__(store)
        self._location = location
        self.written: dict[str, tuple[int, str]] = {}
        self.replacing: set[str] = set()

    def _with_store(self, store: LocalStore) -> RecordingStore:
        """Return a sibling, as zarr asks for; it shares the record."""
        sibling = RecordingStore(store, self._location)
        sibling.written, sibling.replacing = self.written, self.replacing
        return sibling

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Read an object."""
        if key in self.replacing:
            return None
        return await super().get(key, prototype, byte_range)

    async def set(self, key: str, value: Buffer) -> None:
        """Write an object through the location."""
        content = value.to_bytes()
        await asyncio.to_thread(self._location.write, key, content)
        self.written[key] = (len(content), sha256(content))

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Write an object unless it is there."""
        if not await self.exists(key):
            await self.set(key, value)


def is_temporary(key: str) -> bool:
    """Return whether a key is that of a file under way."""
    return key.endswith(_PARTIAL)


def process_lives(pid: int) -> bool:
    """Return whether a process of this machine is running."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _temporary_name(name: str) -> str:
    """Return a name that tells who writes, so that litter can be told from work."""
    return f"{name}.{_HOST}_{os.getpid()}_{uuid.uuid4().hex}{_PARTIAL}"


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
