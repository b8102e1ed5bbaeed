"""Small files: written whole and durably or not at all, and read as not there where damaged."""

from __future__ import annotations

import contextlib
import os
import uuid
from typing import TYPE_CHECKING

from logitcache.platforms import replace_file, sync_folder

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["PARTIAL", "make_folder", "write_file"]

PARTIAL = ".partial"
"""Ending of a file that is being written."""


def write_file(
    path: Path, content: bytes | memoryview | str, temporary: Path | None = None
) -> None:
    """Write a file: a temporary one, fsync, rename, fsync of the folder.

    Args:
        path: The file; missing folders are made.
        content: What it holds; text is written as UTF-8.
        temporary: Where to write first, in the same folder; a name of its own by default.

    Raises:
        OSError: The file system refused; what was at ``path`` is still there.
    """
    make_folder(path.parent)
    partial = temporary or path.with_name(f"{path.name}.{uuid.uuid4().hex}{PARTIAL}")
    try:
        with partial.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        replace_file(partial, path)
    except OSError:
        with contextlib.suppress(OSError):  # the first error is the one to report
            partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def make_folder(folder: Path) -> None:
    """Create a folder and, durably, its entry in each parent."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)
