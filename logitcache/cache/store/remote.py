"""A cache in an object store, by fsspec: whole objects, retries, errors that name what failed.

A file system is opened in the process that uses it: a forked child process opens its own. Requests
are retried only here, so that the time is bounded; clients are configured to try once.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import warnings
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import fsspec
from fsspec.asyn import sync

from logitcache.cache.store.base import MAX_DOCUMENT_BYTES
from logitcache.cache.store.bodies import (
    GRACE_SECONDS,
    LOWEST_RATE,
    Part,
    Receiver,
    receive,
    web_size,
)
from logitcache.cache.store.failures import (
    TRANSIENT,
    WRONG_ADDRESS,
    Failure,
    failure_of,
    storage_error,
)
from logitcache.cache.store.local import checked_key
from logitcache.cache.store.retry import environment_policy
from logitcache.cache.store.urls import SCHEMES, WEB, parse_url
from logitcache.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fsspec import AbstractFileSystem


__all__ = ["RemoteLocation"]

Result = TypeVar("Result")

_READ_ONLY = {"http", "https", "hf"}
_CONNECT_SECONDS, _READ_SECONDS = 10.0, 60.0
_LISTING_SECONDS = 3600.0  # of ten million objects, a thousand in a response
_NOTICE_SECONDS = 5.0  # of failures, after which a warning explains the wait
_NO_ANSWER = WRONG_ADDRESS | {Failure.UNREACHABLE, Failure.UNTRUSTED, Failure.SLOW}


class RemoteLocation:
    """A remote cache; see :class:`~logitcache.cache.store.base.Location`.

    Args:
        url: Scheme, bucket or host, and prefix.
        write: Whether the cache will be written to.

    Attributes:
        traffic: Numbers of requests by kind, and of ``retries``.

    Raises:
        UsageError: :func:`~logitcache.cache.store.urls.parse_url` refuses the URL, the client is
            not installed, the scheme is read-only, or ``memory://`` where there are several
            processes.
    """

    in_flight = 8
    poll_seconds = 1.0

    def __init__(self, url: str, *, write: bool = False) -> None:
        place = parse_url(url)
        if isinstance(place, Path):
            raise UsageError("a path is not the URL of an object store", where=url)
        self._shown, self._scheme = place.shown, place.scheme
        self._base, self._query = place.base, place.query
        self._retries = environment_policy()
        self._opened: dict[int, AbstractFileSystem] = {}
        self._pid = os.getpid()
        self._reached = False
        self.traffic: Counter[str] = Counter()
        if write:
            self._check_writable()
        several = int(os.environ.get("WORLD_SIZE", "1")) > 1
        several = several or multiprocessing.parent_process() is not None
        if self._scheme == "memory" and several:
            raise self._one_process()
        _check_client(self._scheme, self._shown)

    def __str__(self) -> str:
        return self._shown

    def __getstate__(self) -> dict[str, Any]:
        if self._scheme == "memory":
            raise self._one_process()
        # a file system belongs to the event loop of the process that opened it
        return {**self.__dict__, "_opened": {}}

    @property
    def lists(self) -> bool:
        """Whether keys can be listed."""
        return self._scheme not in WEB

    @property
    def is_distant(self) -> bool:
        """Whether copies are worth keeping on this machine."""
        return self._scheme != "memory"

    def read(
        self,
        key: str,
        start: int | None = None,
        stop: int | None = None,
        *,
        most: int = MAX_DOCUMENT_BYTES,
    ) -> bytes | None:
        """Return an object, or a part of it; None if there is none.

        Args:
            key: Its key.
            start: First byte of the part, as in a slice.
            stop: One past its last byte.
            most: Largest number of bytes to be received.

        Raises:
            CacheDamaged: The object is larger; no more than ``most`` bytes are received.
            StorageError: The store fails, compresses, or sends the whole object instead of a part.
        """
        # a Range header has no form for a stop that is counted from the end
        if (start is not None and start < 0 and stop is not None) or (stop or 0) < 0:
            whole = self.read(key, most=most)
            return None if whole is None else whole[start:stop]
        part = None if start is None and stop is None else Part(start or 0, stop)
        if part is not None and part.wanted == 0:
            return None if self.size(key) is None else b""
        return self._request("read", key, lambda files: self._received(files, key, most, part))

    def _received(self, files: AbstractFileSystem, key: str, most: int, part: Part | None) -> bytes:
        pieces: list[bytes] = []
        receive(files, self._path(key), Receiver(f"{self}/{key}", most, pieces.append, part))
        return b"".join(pieces)

    def read_part(self, key: str, start: int, stop: int) -> bytes | None:
        """Return a part of an object; None if there is none."""
        return self.read(key, start, stop)

    def size(self, key: str) -> int | None:
        """Return the bytes of an object, None if there is none."""
        path = self._path(key)
        if self._scheme in WEB:
            return self._request("look", key, lambda files: web_size(files, path, f"{self}/{key}"))
        found = self._request("look", key, lambda files: _call(files, "info", path))
        return int(found["size"]) if found is not None and found["type"] == "file" else None

    def stamp(self, key: str) -> tuple[int, int, int] | None:
        """Return None: a request for the status of an object costs as much as reading it."""
        checked_key(key, self)
        return None

    def modified(self, key: str) -> float | None:
        """Return when an object was written, by the clock of its server; None if there is none."""
        path = self._path(key)
        written = self._request("look", key, lambda files: _call(files, "modified", path))
        if written is None:
            return None
        moment: datetime = written if written.tzinfo else written.replace(tzinfo=UTC)
        return moment.timestamp()

    def digest(self, key: str, *, most: int) -> tuple[int, str] | None:
        """Return size and sha256 of an object, received in pieces; None if there is none.

        Args:
            key: Its key.
            most: As in :meth:`read`.

        Raises:
            CacheDamaged: As in :meth:`read`.
        """
        path = self._path(key)

        def digested(files: AbstractFileSystem) -> tuple[int, str]:
            found = hashlib.sha256()
            receiver = Receiver(f"{self}/{key}", most, found.update)
            receive(files, path, receiver)
            return receiver.received, found.hexdigest()

        return self._request("read", key, digested)

    def write(self, key: str, content: bytes) -> None:
        """Write an object; stores replace whole objects or nothing."""
        self._check_writable()
        path = self._path(key)
        self._request("write", key, lambda files: _write(files, path, content), must=True)

    def write_new(self, key: str, content: bytes) -> bool:
        """Write an object unless there is one; return whether this process has written it."""
        return self.create(key, content)

    def create(self, key: str, content: bytes) -> bool:
        """Write an object unless there is one; return whether this process has written it."""
        self._check_writable()
        path = self._path(key)
        before = self.traffic["retries"]
        try:
            self._retried("write", lambda files: _write(files, path, content, mode="create"))
        except Exception as error:
            if failure_of(error) is not Failure.EXISTS:
                raise storage_error(error, f"{self}/{key}") from None
            # an attempt whose response was lost may have written it
            return self.traffic["retries"] > before and self.read(key) == content
        return True

    def touch(self, key: str) -> None:
        """Write an object again if it exists, which renews its modification time."""
        content = self.read(key)
        if content is not None:
            self.write(key, content)

    def lock(self, key: str, before: bytes, content: bytes) -> None:
        """Return None: objects of a store cannot be locked."""

    def is_locked(self, key: str) -> None:
        """Return None: objects of a store cannot be locked."""

    def delete(self, key: str) -> None:
        """Remove an object if it exists."""
        self._check_writable()
        path = self._path(key)
        self._request("write", key, lambda files: _call(files, "rm_file", path))

    def remove_folder(self, prefix: str) -> None:
        """Do nothing: an object store has no folders."""

    def names(self, prefix: str) -> list[str]:
        """Return the names of the objects directly below a prefix, sorted."""
        return sorted(entry for entry, is_file in self._entries(prefix) if is_file)

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Yield the keys of all objects below a prefix."""
        yield from self._sizes(prefix)

    def sweep(self) -> list[str]:
        """Return nothing: a store never shows an object that is not complete."""
        return []

    def is_empty(self) -> bool:
        """Return whether there is nothing but claims."""
        if not self.lists:
            return self.size("zarr.json") is None
        return all(name == "claims" for name, _ in self._entries(""))

    def bytes_below(self, prefix: str) -> int:
        """Return the bytes of all objects below a prefix."""
        return sum(self._sizes(prefix).values())

    def free_bytes(self) -> int | None:
        """Return None: the free space of a store is not known."""
        return None

    def _path(self, key: str) -> str:
        inner = checked_key(key, self).strip("/")
        inner = quote(inner) if self._scheme in WEB else inner
        return (f"{self._base}/{inner}" if inner else self._base) + self._query

    def _entries(self, prefix: str) -> list[tuple[str, bool]]:
        """Return name and whether it is an object, for all that is directly below a prefix."""
        if not self.lists:
            return []
        path = self._path(prefix)
        found = self._request("list", prefix, lambda files: _list(files, "ls", path)) or []
        names = [
            (str(e["name"]).rstrip("/").rpartition("/")[2], e["type"] == "file") for e in found
        ]
        return [(name, is_file) for name, is_file in names if name]

    def _sizes(self, prefix: str) -> dict[str, int]:
        if not self.lists:
            return {}
        path = self._path(prefix)
        found = self._request("list", prefix, lambda files: _list(files, "find", path)) or {}
        root = self._files()._strip_protocol(self._base).rstrip("/") + "/"
        return {str(name).removeprefix(root): int(e["size"]) for name, e in found.items()}

    def _request(
        self,
        what: str,
        key: str,
        request: Callable[[AbstractFileSystem], Result],
        *,
        must: bool = False,
    ) -> Result | None:
        """Return the result of a request; None where the object does not exist."""
        try:
            return self._retried(what, request)
        except Exception as error:
            if failure_of(error) is Failure.ABSENT and not must:
                return None
            raise storage_error(error, f"{self}/{key}".rstrip("/")) from None

    def _retried(self, what: str, request: Callable[[AbstractFileSystem], Result]) -> Result:
        files = self._files()

        def once() -> Result:
            self.traffic[what] += 1
            try:
                result = request(files)
            except Exception as error:
                self._reached |= failure_of(error) not in _NO_ANSWER
                raise
            self._reached = True
            return result

        # before the first response an unknown host is a wrong URL rather than an outage
        transient = TRANSIENT if self._reached else TRANSIENT - WRONG_ADDRESS
        return self._retries.call(once, self._note_retry, transient)

    def _note_retry(self, failure: Failure, seconds: float) -> None:
        self.traffic["retries"] += 1
        if seconds > _NOTICE_SECONDS:
            patience = self._retries.patience_seconds
            warnings.warn(
                f"{self}: {failure.value}; the request is tried again for {patience:.0f} seconds",
                RuntimeWarning,
                stacklevel=2,
            )

    def _files(self) -> AbstractFileSystem:
        """Return the file system of this process."""
        pid = os.getpid()
        if self._scheme == "memory" and pid != self._pid:
            raise self._one_process()
        if pid not in self._opened:
            self._opened[pid] = _open(self._scheme)
        return self._opened[pid]

    def _check_writable(self) -> None:
        if self._scheme in _READ_ONLY:
            raise UsageError(
                f"caches on {self._scheme}:// can only be read",
                where=self._shown,
                hint="write the cache to a folder, s3:// or gs://, and copy it from there "
                "(logitcache push) or serve it",
            )

    def _one_process(self) -> UsageError:
        return UsageError(
            "a memory:// cache can be used by one process only",
            where=self._shown,
            got="several processes",
            hint="put the cache into a folder, or use one process",
        )


def _check_client(scheme: str, shown: str) -> None:
    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        extra = f"logitcache[{SCHEMES[scheme]}]" if SCHEMES[scheme] else error.name
        raise UsageError(
            f"caches on {scheme}:// require a package that is not installed",
            where=shown,
            expected=f"the package {error.name}",
            hint=f"pip install '{extra}'",
        ) from None


def _call(files: AbstractFileSystem, name: str, *args: Any, **options: Any) -> Any:
    """Return the result of a method of a file system, within the time of a small response."""
    return _timed(files, name, GRACE_SECONDS, *args, **options)


def _write(files: AbstractFileSystem, path: str, content: bytes, **options: Any) -> None:
    seconds = GRACE_SECONDS + len(content) / LOWEST_RATE
    _timed(files, "pipe_file", seconds, path, content, **options)


def _list(files: AbstractFileSystem, name: str, path: str) -> Any:
    return _timed(files, name, _LISTING_SECONDS, path, detail=True)


def _timed(files: AbstractFileSystem, name: str, seconds: float, *args: Any, **options: Any) -> Any:
    """Call a method within a time limit; blocking methods have the limits of their client."""
    # fsspec runs coroutines in an event loop of another thread, where the time limit cancels them
    method = getattr(files, f"_{name}", None) if files.async_impl else None
    if method is None:
        return getattr(files, name)(*args, **options)
    return sync(files.loop, method, *args, timeout=seconds, **options)


def _open(scheme: str) -> AbstractFileSystem:
    """Open a file system without a cache of listings and, where possible, without retries."""
    options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
    if scheme == "s3":
        from botocore.config import Config  # comes with s3fs

        options["max_concurrency"] = 1  # one GET an object, without asking for its size
        options["config_kwargs"] = {
            "connect_timeout": _CONNECT_SECONDS,
            "read_timeout": _READ_SECONDS,
            "retries": {"total_max_attempts": 1},
        }
        if "response_checksum_validation" in Config.OPTION_DEFAULTS:  # since botocore 1.36
            # every object is compared with its sha256, and rclone sends the checksum of the whole
            # object with each part of it
            options["config_kwargs"]["response_checksum_validation"] = "when_required"
    elif scheme in WEB:
        import aiohttp

        options["client_kwargs"] = {
            "timeout": aiohttp.ClientTimeout(
                total=None, sock_connect=_CONNECT_SECONDS, sock_read=_READ_SECONDS
            ),
            "auto_decompress": False,  # a small body could become one of any size
        }
    files: AbstractFileSystem = fsspec.filesystem(scheme, **options)
    if scheme == "s3":
        files.retries = 1
    return files
