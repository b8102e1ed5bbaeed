"""Small files: atomic, durable writes, and reads that treat damage as absence."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import stat
import uuid
from typing import TYPE_CHECKING, Any

from logitcache.platforms import replace_file, sync_folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = [
    "PARTIAL",
    "make_folder",
    "read_json",
    "remove_folder",
    "warn_damaged",
    "write_file",
    "written_together",
]

PARTIAL = ".partial"
"""Ending of a file that is being written."""

_MOST_BYTES = 64 << 20  # of a JSON document; the state of a run is far smaller
_LOG = logging.getLogger(__name__)


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in a file, None if there is none.

    A file with any other content is damaged: it counts as missing, and a warning is logged.

    Args:
        path: The file, as written by :func:`write_file`.

    Raises:
        OSError: The file system refused to read it.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode) or found.st_size > _MOST_BYTES:
            warn_damaged(path, f"not a file of at most {_MOST_BYTES >> 20} MiB")
            return None
        values = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or nested too deeply
        warn_damaged(path, str(error) or type(error).__name__)
        return None
    if not isinstance(values, dict):
        warn_damaged(path, f"a JSON value of type {type(values).__name__} instead of an object")
        return None
    return values


def warn_damaged(path: Path, why: str) -> None:
    """Log that a file is damaged and counts as missing."""
    _LOG.warning("%s is damaged and counts as missing: %s", path, why.partition("\n")[0][:200])


def write_file(
    path: Path, content: bytes | memoryview | str, temporary: Path | None = None
) -> None:
    """Write a file: a temporary one, fsync, rename, fsync of the folder.

    Args:
        path: The file; missing folders are created.
        content: Its content; text is written as UTF-8.
        temporary: Temporary file in the same folder; one with a unique name by default.

    Raises:
        OSError: The file system refused; what was at ``path`` is still there.
    """
    make_folder(path.parent)
    partial = temporary or path.with_name(f"{path.name}.{uuid.uuid4().hex}{PARTIAL}")
    try:
        with partial.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            # before the rename: a crash could otherwise leave an empty file under the final name
            os.fsync(file.fileno())
        replace_file(partial, path)
    except OSError:
        with contextlib.suppress(OSError):  # the first error is the one to report
            partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)  # the rename is an entry of the folder, which is durable on its own


@contextlib.contextmanager
def written_together(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder, whose files are moved into the final one at the end.

    For libraries that write files themselves. Nothing is moved after an error.

    Args:
        folder: The final folder, which is created if it is missing.
    """
    make_folder(folder)
    partial = folder.with_name(f"{folder.name}{PARTIAL}")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    partial.mkdir()
    try:
        yield partial
        for path in sorted(partial.iterdir()):
            with path.open("rb+") as file:
                os.fsync(file.fileno())
            replace_file(path, folder / path.name)
        sync_folder(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder with its files; renamed first, so no part of it keeps the name."""
    partial = folder.with_name(f"{folder.name}{PARTIAL}")
    shutil.rmtree(partial, ignore_errors=True)
    folder.rename(partial)
    shutil.rmtree(partial)


def make_folder(folder: Path) -> None:
    """Create a folder and, durably, its entry in each parent."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)
