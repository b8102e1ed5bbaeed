"""Local copies of shards behind URLs: each shard is downloaded once, as a whole."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from logitcache.errors import DataError, StorageError, UsageError, redacted

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["PLACE", "copy_of_shard"]

PLACE = "LOGITCACHE_SHARDS"
"""Environment variable of the folder of copies."""

_LOG = logging.getLogger(__name__)

Result = TypeVar("Result")


def copy_of_shard(url: str) -> Path:
    """Return the path of the local copy of a shard, which is downloaded if it is missing.

    A copy is used again while the shard has the same number of bytes.

    Args:
        url: URL of the shard, of any scheme that fsspec has a file system for.

    Raises:
        DataError: There is no such shard, or it changed while it was copied.
        StorageError: The server fails.
        UsageError: The client of the scheme is not installed, or there is no such scheme.
    """
    shown = redacted(url)
    size = _request(shown, lambda: _size(url))
    folder = _place() / sha256(url.rpartition("/")[0].encode()).hexdigest()[:16]
    path = folder / PurePosixPath(urlsplit(url).path).name
    if path.is_file() and path.stat().st_size == size:
        return path
    _LOG.info("%s: copying %.1f MB to %s", shown, size / 1e6, path)
    folder.mkdir(parents=True, exist_ok=True)
    file, temporary = tempfile.mkstemp(dir=folder, suffix=".partial")
    os.close(file)
    try:
        _request(shown, lambda: _copy(url, temporary))
        if Path(temporary).stat().st_size != size:
            raise DataError(
                "the shard changed while it was copied, or the connection was cut",
                where=shown,
                expected=f"{size} bytes",
                got=f"{Path(temporary).stat().st_size} bytes",
                hint="run the same command again; complete copies are kept",
            )
        Path(temporary).replace(path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            Path(temporary).unlink()
    return path


def _opened(url: str) -> tuple[Any, str]:
    """Return the file system of a URL and its path there."""
    from fsspec.core import url_to_fs  # not needed for images of this machine

    files, path = url_to_fs(url)
    return files, path


def _size(url: str) -> int:
    files, path = _opened(url)
    size = files.info(path)["size"]
    if size is None:
        raise OSError("the server does not send the size")
    return int(size)


def _copy(url: str, path: str) -> None:
    files, place = _opened(url)
    files.get_file(place, path)


def _request(shown: str, request: Callable[[], Result]) -> Result:
    """Return the result of a request, its failures as errors of the package."""
    try:
        return request()
    except FileNotFoundError:
        raise DataError(
            "the shard does not exist",
            where=shown,
            hint="check the URL, and the first and the last number of the pattern",
        ) from None
    except (ImportError, ValueError) as error:  # of fsspec: no client, no such scheme
        raise UsageError("the URL of the shard cannot be read", where=shown, got=error) from None
    except Exception as error:  # each client has classes of its own
        raise StorageError(
            "the shard cannot be copied",
            where=shown,
            got=f"{type(error).__name__}: {error}",
            hint="run the same command again; complete copies are kept",
        ) from None


def _place() -> Path:
    """Return the folder of copies: that of the environment, or one in the user's cache folder."""
    if PLACE in os.environ:
        return Path(os.environ[PLACE])
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "logitcache" / "image-shards"
