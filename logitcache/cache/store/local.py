"""A cache in a folder: objects are files, written whole and durably.

Zarr's own local store renames atomically but never calls fsync, so a power cut could leave a commit
that outlives its data. Everything a cache writes goes through :meth:`LocalLocation.write` instead.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING

from logitcache.cache.store.base import MAX_DOCUMENT_BYTES
from logitcache.cache.store.open_files import OpenFiles
from logitcache.cache.store.temporary import is_abandoned, is_temporary, temporary_name
from logitcache.errors import CacheDamaged, StorageError
from logitcache.files import PARTIAL, make_folder, write_file
from logitcache.platforms import available_processors, free_bytes, is_locked, lock_file

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["LocalLocation", "checked_key", "too_large"]

_FULL = {errno.ENOSPC, errno.EDQUOT}


class LocalLocation:
    """A cache in a folder; see :class:`~logitcache.cache.store.base.Location`.

    Args:
        root: The folder; it need not exist yet.
    """

    lists = True
    is_distant = False
    in_flight = min(4, available_processors())
    poll_seconds = 0.05

    def __init__(self, root: Path) -> None:
        self.root = root
        self._folders: set[str] = set()  # checked not to be links when they were first used
        self._open = OpenFiles(self.path)

    def __str__(self) -> str:
        return str(self.root)

    def path(self, key: str) -> Path:
        """Return the file of a key.

        Raises:
            CacheDamaged: The key, or a folder on its way that is a link, leads out of the cache.
        """
        folder = checked_key(key, self).rpartition("/")[0]
        if folder and folder not in self._folders:
            self._check_folders(folder)
        return self.root / key

    def read(
        self,
        key: str,
        start: int | None = None,
        stop: int | None = None,
        *,
        most: int = MAX_DOCUMENT_BYTES,
    ) -> bytes | None:
        """Return an object, or a part of it; None if there is none."""
        path = self.path(key)
        found = self._stat(path)
        if found is None:
            return None
        first, last, _ = slice(start, stop).indices(found.st_size)
        if last - first > most:
            raise too_large(f"{self}/{key}", most, f"{last - first} bytes")
        try:
            with _explained(path), path.open("rb") as file:
                if first:
                    file.seek(first)
                return file.read(max(0, last - first))
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None

    def read_part(self, key: str, start: int, stop: int) -> bytes | None:
        """Return a part of an object, perhaps of one that has since been replaced."""
        part = self._open.read(key, start, stop)
        return self.read(key, start, stop) if part is None else part

    def size(self, key: str) -> int | None:
        """Return the bytes of an object, None if there is none."""
        found = self._stat(self.path(key))
        return None if found is None else found.st_size

    def stamp(self, key: str) -> tuple[int, int, int] | None:
        """Return size, inode and modification time of an object; None without one."""
        found = self._stat(self.path(key))
        return None if found is None else (found.st_size, found.st_ino, found.st_mtime_ns)

    def digest(self, key: str, *, most: int) -> tuple[int, str] | None:
        """Return size and sha256 of an object, read in small pieces; None if there is none."""
        path = self.path(key)
        found = self._stat(path)
        if found is None:
            return None
        if found.st_size > most:
            raise too_large(f"{self}/{key}", most, f"{found.st_size} bytes")
        try:
            with _explained(path), path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                return file.tell(), digest
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None

    def modified(self, key: str) -> float | None:
        """Return when an object was written or touched; None if there is none."""
        stamp = self.stamp(key)
        return None if stamp is None else stamp[2] / 1e9

    def write(self, key: str, content: bytes | memoryview) -> None:
        """Write an object whole: temporary file, fsync, rename, fsync of the folder.

        Raises:
            StorageError: The disk is full or failed, or a folder has this name; nothing is visible
                under the key.
        """
        path = self.path(key)
        try:
            with _explained(path):
                write_file(path, content, path.with_name(temporary_name(path.name)))
        except IsADirectoryError:
            raise StorageError(
                "an object cannot be written because a folder has its name",
                where=path,
                hint="remove the folder and re-run the same command",
            ) from None

    def create(self, key: str, content: bytes) -> bool:
        """Write an object unless there is one; return whether it was written.

        Neither atomic in its content nor synced: for claims, on which correctness does not depend.
        """
        path = self.path(key)
        with _explained(path):
            try:
                make_folder(path.parent)
                with path.open("xb") as file:
                    file.write(content)
            except FileExistsError:
                return False
        return True

    def write_new(self, key: str, content: bytes) -> bool:
        """Write an object durably and return True: a rename does not report what it replaced."""
        self.write(key, content)
        return True

    def touch(self, key: str) -> None:
        """Renew the modification time of an object if it exists."""
        with contextlib.suppress(FileNotFoundError), _explained(self.path(key)):
            os.utime(self.path(key))

    def lock(self, key: str, before: bytes, content: bytes) -> int | None:
        """Lock an object while this process runs; return a descriptor, None if that failed."""
        return lock_file(self.path(key), before, content)

    def is_locked(self, key: str) -> bool | None:
        """Return whether a process of this machine has locked an object; None if not known."""
        return is_locked(self.path(key))

    def remove_folder(self, prefix: str) -> None:
        """Remove a folder if it is empty."""
        with contextlib.suppress(OSError):
            self.path(prefix).rmdir()

    def delete(self, key: str) -> None:
        """Remove an object if it exists."""
        with _explained(self.path(key)), contextlib.suppress(NotADirectoryError):
            self.path(key).unlink(missing_ok=True)

    def names(self, prefix: str) -> list[str]:
        """Return the names of the objects directly below a prefix, sorted."""
        try:
            return sorted(
                entry.name
                for entry in os.scandir(self.path(prefix))
                if entry.is_file() and not entry.name.endswith(PARTIAL)
            )
        except (FileNotFoundError, NotADirectoryError):
            return []

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Yield the key of every file below a prefix, temporary ones included."""
        for folder, _, files in os.walk(self.path(prefix)):
            for name in files:
                yield (Path(folder) / name).relative_to(self.root).as_posix()

    def sweep(self) -> list[str]:
        """Remove temporary files whose writer has ended; return their keys."""
        swept = [
            key
            for key in self.keys()
            if is_temporary(key) and is_abandoned(key, self.modified(key))
        ]
        for key in swept:
            self.delete(key)
        return swept

    def is_empty(self) -> bool:
        """Return whether there is nothing but claims and temporary files."""
        return not self.root.exists() or (
            self.root.is_dir()
            and all(
                path.name == "claims" or is_temporary(path.name) for path in self.root.iterdir()
            )
        )

    def bytes_below(self, prefix: str) -> int:
        """Return the bytes of all objects below a prefix."""
        return sum(self.size(key) or 0 for key in self.keys(prefix))

    def free_bytes(self) -> int:
        """Return the bytes that can still be written."""
        return free_bytes(self.root)

    def _stat(self, path: Path) -> os.stat_result | None:
        """Return the status of a regular file; None where there is none.

        Raises:
            CacheDamaged: It is a link, a device, a pipe or a socket: reading it may return any file
                of the machine, or never end.
        """
        try:
            with _explained(path):
                found = path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        if stat.S_ISREG(found.st_mode):
            return found
        if stat.S_ISDIR(found.st_mode):
            return None
        raise _irregular(path, found)

    def _check_folders(self, folder: str) -> None:
        """Refuse folders of a cache that are links; missing ones may be created later."""
        path = self.root
        for part in PurePosixPath(folder).parts:
            path /= part
            try:
                with _explained(path):
                    found = path.lstat()
            except (FileNotFoundError, NotADirectoryError):
                return
            if not stat.S_ISDIR(found.st_mode) and not stat.S_ISREG(found.st_mode):
                raise _irregular(path, found)
        self._folders.add(folder)


def _irregular(path: Path, found: os.stat_result) -> CacheDamaged:
    is_link = stat.S_ISLNK(found.st_mode)
    return CacheDamaged(
        "a cache may contain regular files and folders only",
        where=path,
        got="a symbolic link" if is_link else "a device, a pipe or a socket",
        hint="copy the cache with its links resolved, as cp -rL and rsync -L do"
        if is_link
        else "do not use this cache",
    )


def too_large(where: str, most: int, got: str) -> CacheDamaged:
    """Return the error for an object of more than ``most`` bytes."""
    what = "an object is larger than the format allows"
    return CacheDamaged(what, where=where, expected=f"at most {most} bytes", got=got)


def checked_key(key: str, location: object) -> str:
    """Return a key that stays inside its cache.

    Raises:
        CacheDamaged: It leads out of it.
    """
    parts = PurePosixPath(key).parts
    has_drive = bool(PureWindowsPath(key).drive)  # joined to a folder, it replaces the folder
    if ".." in parts or key.startswith("/") or "\0" in key or "\\" in key or has_drive:
        what, expected = "a key leads out of the cache", "a relative path without '..'"
        raise CacheDamaged(what, where=location, expected=expected, got=repr(key)[:200])
    return key


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Convert errors of the file system into errors with the path and a hint."""
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
            hint=("free some space" if full else "check the disk and the permissions")
            + " and re-run the same command; committed data is intact",
        ) from error
