"""Paths that users write, tested without an error for those that no file can have."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["holds", "user_path"]


def user_path(name: str) -> Path:
    """Return the path of a name; ``~`` is the home folder."""
    try:
        return Path(name).expanduser()
    except RuntimeError:  # no such user
        return Path(name)


def holds(test: Callable[[], bool]) -> bool:
    """Return the result of a test of a path, such as ``path.is_dir``; False if it is impossible."""
    try:
        return test()
    except OSError:  # too long, or below a folder that may not be read
        return False
