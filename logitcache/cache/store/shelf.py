"""Names of caches in the place of their addresses: ``demo:NAME`` and ``shelf:NAME``.

``demo:`` is a small cache that is part of the package. ``shelf:`` is a cache below the address in
the environment variable :data:`SHELF`, for example of a team.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import zipfile
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from logitcache.errors import UsageError, nearest
from logitcache.platforms import user_cache

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["SHELF", "demo_archive", "named_cache"]

SHELF = "LOGITCACHE_SHELF"
"""Environment variable with the address below which the caches of a shelf are."""

_NAME = re.compile(r"(demo|shelf):(?!//)([^\\\s]*)")


def named_cache(url: str, *, write: bool = False) -> str | Path | None:
    """Return the address or folder of a cache that is named; None for every other address.

    Args:
        url: A path, URL, ``demo:NAME`` or ``shelf:NAME``.
        write: Whether the cache will be written to.

    Raises:
        UsageError: There is no cache of this name, no shelf is configured, or a demo cache would be
            written to.
    """
    found = _NAME.fullmatch(url)
    return None if found is None else _KINDS[found[1]](found[2], write)


def demo_archive(name: str) -> Path:
    """Return the file of the package with a demo cache; it may not exist."""
    return Path(str(resources.files("logitcache"))) / "demo" / f"{name}.zip"


def _demo(name: str, write: bool) -> Path:
    """Return a demo cache, unpacked once in the user's cache folder."""
    known = sorted(path.stem for path in demo_archive(name).parent.glob("*.zip"))
    if name not in known:
        raise UsageError(
            f"there is no demo cache {name!r}",
            where=f"demo:{name}",
            expected=" or ".join(f"demo:{one}" for one in known),
            hint=nearest(name, known),
        )
    if write:
        raise UsageError(
            "a demo cache is part of the package, and is only read",
            where=f"demo:{name}",
            hint=f"copy it first: logitcache pull demo:{name} FOLDER",
        )
    archive = demo_archive(name)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    folder = user_cache() / "demo" / f"{name}-{digest[:16]}"
    if not folder.is_dir():
        _unpack(archive, folder)
    return folder


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack an archive under a temporary name, and rename the folder when it is complete."""
    partial = folder.with_name(f"{folder.name}.{uuid4().hex}")
    try:
        with zipfile.ZipFile(archive) as file:
            file.extractall(partial)
        try:
            partial.rename(folder)
        except OSError:
            if not folder.is_dir():  # another process was faster
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _shelf(name: str, write: bool) -> str:
    del write  # what can be written to depends on the address
    address = os.environ.get(SHELF, "").strip()
    parts = name.split("/")
    if not address:
        raise UsageError(
            f"no shelf is configured: the environment variable {SHELF} is not set",
            where=f"shelf:{name}",
            expected=f"{SHELF}=s3://bucket/caches, or another address below which the caches are",
        )
    if not all(parts) or {".", ".."} & set(parts):
        raise UsageError(
            "a name on a shelf is a path without empty parts, '.' and '..'",
            where=f"shelf:{name}",
            expected="shelf:NAME or shelf:TEAM/NAME",
        )
    return f"{address.rstrip('/')}/{name}"


_KINDS: dict[str, Callable[[str, bool], str | Path]] = {"demo": _demo, "shelf": _shelf}
"""By prefix, functions that return the place of a name."""
