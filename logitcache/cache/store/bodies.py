"""Bodies of responses, received in pieces: up to a given size, and no slower than a given rate.

The length that a server declares is not relied on: the pieces are counted as they arrive.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fsspec.asyn import sync

from logitcache.cache.store.failures import http_status
from logitcache.cache.store.local import too_large
from logitcache.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from fsspec import AbstractFileSystem

__all__ = ["Part", "Receiver", "receive", "web_size"]

GRACE_SECONDS = 60.0
"""After which a body has to arrive at the lowest rate on average, counted from its request."""

LOWEST_RATE = 20_000.0
"""Bytes per second. Eight bodies at a time over a line of 2 Mbit/s have 30 kB/s each."""

_PIECE = 2**18
_MOST_COUNTED = 2**28  # of a body that is received to count its bytes
_NO_HEAD = {400, 401, 403, 405, 501}  # of servers, or signed addresses, that allow GET alone
_IDENTITY = {"Accept-Encoding": "identity"}  # a body has the stored bytes and their length


@dataclass(frozen=True)
class Part:
    """Byte range of an object, as a slice whose stop is not negative.

    Attributes:
        start: First byte, counted from the end if negative.
        stop: One past the last byte; None for the end.
    """

    start: int
    stop: int | None = None

    @property
    def wanted(self) -> int | None:
        """Largest number of bytes in a response; None without a stop."""
        if self.start < 0:
            return -self.start
        return None if self.stop is None else max(0, self.stop - self.start)

    @property
    def header(self) -> str:
        """The value of a Range header."""
        if self.start < 0:
            return f"bytes={self.start}"
        return f"bytes={self.start}-" + ("" if self.stop is None else str(self.stop - 1))


@dataclass
class Receiver:
    """Counter of the pieces of a body, which it passes on.

    Attributes:
        where: The object, for error messages.
        most: Largest size of the object in bytes.
        take: Function that each piece is passed to.
        part: Requested byte range; None for the whole object.
        received: Bytes so far.
    """

    where: str
    most: int
    take: Callable[[bytes], object]
    part: Part | None = None
    received: int = field(default=0, init=False)

    def begin(self, *, partial: bool, declared: int | None) -> None:
        """Check the declared length of a response.

        Args:
            partial: Whether the response is the requested part.
            declared: Bytes of the body; None where nothing is declared.

        Raises:
            StorageError: The server sends the whole object instead of the part.
            CacheDamaged: The object is too large.
        """
        got = "all bytes" if declared is None else f"{declared} bytes"
        if self.part is not None and not partial and self.part.start > 0:
            raise self._no_ranges(got)
        if declared is not None:
            self._check(declared, got)

    def add(self, piece: bytes) -> None:
        """Pass on a piece; raises the errors of :meth:`begin`."""
        self.received += len(piece)
        self._check(self.received, f"{self.received} bytes or more")
        self.take(piece)

    def _check(self, size: int, got: str) -> None:
        wanted = self.part.wanted if self.part is not None else None
        if wanted is not None and size > wanted:
            raise self._no_ranges(got)
        if size > self.most:
            raise too_large(self.where, self.most, got)

    def _no_ranges(self, got: str) -> StorageError:
        wanted = self.part.wanted if self.part is not None else None
        return StorageError(
            "this server does not support Range requests",
            where=self.where,
            expected="a part of the object" if wanted is None else f"{wanted} bytes",
            got=f"{got} of the whole object",
            hint="use commands that read whole objects: train, or verify without --quick",
        )


def receive(files: AbstractFileSystem, path: str, receiver: Receiver) -> None:
    """Receive an object, or the part of it that the receiver is for, by one request.

    Args:
        files: The file system, of the process that calls.
        path: Path of the object in it.
        receiver: Receiver of the pieces.

    Raises:
        FileNotFoundError: There is none.
        CacheDamaged: It is larger than it may be.
        StorageError: The server compresses, or sends the whole object instead of a part.
        Exception: The error of the client where the request fails; ``TimeoutError`` where the body
            takes too long.
    """
    if not files.async_impl:
        _receive_blocking(files, path, receiver)
        return
    known = {"http": _receive_web, "s3": _receive_s3}
    protocols = files.protocol if isinstance(files.protocol, tuple) else (files.protocol,)
    by = next((known[name] for name in protocols if name in known), _receive_range)
    sync(files.loop, by, files, path, receiver)


def web_size(files: AbstractFileSystem, url: str, where: str) -> int:
    """Return the size of an object of a web server, which is counted if it is not declared.

    Raises:
        Exception: The errors of :func:`receive`.
    """
    size: int = sync(files.loop, _web_size, files, url, where)
    return size


async def _web_size(files: Any, url: str, where: str) -> int:
    session = await files.set_session()
    address, receiver = files.encode_url(url), Receiver(where, _MOST_COUNTED, lambda _: None)
    async with _in_time() as in_time:
        async with session.head(address, headers=_IDENTITY, allow_redirects=True) as response:
            if response.status not in _NO_HEAD:
                _check_response(response, url, where)
                if response.content_length is not None:
                    return int(response.content_length)
        async with session.get(address, headers=_IDENTITY) as response:
            _check_response(response, url, where)
            if response.content_length is not None:
                return int(response.content_length)
            await _receive_pieces(response, receiver, in_time)
    return receiver.received


async def _receive_web(files: Any, url: str, receiver: Receiver) -> None:
    session = await files.set_session()
    headers = dict(_IDENTITY)
    if receiver.part is not None:
        headers["Range"] = receiver.part.header
    async with (
        _in_time() as in_time,
        session.get(files.encode_url(url), headers=headers) as response,
    ):
        if response.status == 416 and receiver.part is not None:
            return  # the part begins beyond the end
        _check_response(response, url, receiver.where)
        partial = response.status == 206 or _is_part(response.headers.get("Content-Range"))
        receiver.begin(partial=partial, declared=response.content_length)
        await _receive_pieces(response, receiver, in_time)


def _is_part(content_range: str | None) -> bool:
    """Return whether a response of status 200 is a part nevertheless, as those of rclone are."""
    return content_range is not None and content_range.startswith("bytes ")


async def _receive_pieces(
    response: Any, receiver: Receiver, in_time: Callable[[int], None]
) -> None:
    async for piece in response.content.iter_any():
        receiver.add(piece)
        in_time(receiver.received)


def _check_response(response: Any, url: str, where: str) -> None:
    """Raise an error for an unusable response, from its head; the body is not read."""
    if response.status == 404:
        raise FileNotFoundError(url)
    response.raise_for_status()
    if not 200 <= response.status < 300:  # a redirection without an address
        got = f"HTTP status {response.status}"
        raise StorageError("the store refused the request", where=where, got=got)
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in {"", "identity"}:
        raise StorageError(
            "this server compresses its responses",
            where=where,
            expected="the stored bytes, as requested by 'Accept-Encoding: identity'",
            got=f"Content-Encoding: {encoding[:40]!r}",
            hint="turn compression off for this folder, in nginx by 'gzip off; gzip_static off;'",
        )


async def _receive_s3(files: Any, path: str, receiver: Receiver) -> None:
    bucket, key, _ = files.split_path(path)
    part = {} if receiver.part is None else {"Range": receiver.part.header}
    async with _in_time() as in_time:
        try:
            response = await files._call_s3("get_object", Bucket=bucket, Key=key, **part)
        except OSError as error:
            if part and http_status(error) == 416:
                return
            raise
        body = response["Body"]
        try:
            partial = response["ResponseMetadata"].get("HTTPStatusCode") == 206
            partial = partial or _is_part(response.get("ContentRange"))
            receiver.begin(partial=partial, declared=response.get("ContentLength"))
            while piece := await body.read(_PIECE):
                receiver.add(piece)
                in_time(receiver.received)
        finally:
            body.close()


async def _receive_range(files: Any, path: str, receiver: Receiver) -> None:
    """Receive by a client that returns whole bodies: one byte over the limit is requested.

    The progress of such a body is not visible, so its time limit is that of the largest body.
    """
    part = receiver.part or Part(0, receiver.most + 1)
    wanted = part.wanted
    most = receiver.most if wanted is None else min(wanted, receiver.most)
    async with asyncio.timeout(GRACE_SECONDS + most / LOWEST_RATE):
        try:
            content = await files._cat_file(path, start=part.start, end=part.stop)
        except Exception as error:
            # an empty object has no ranges, or the range begins beyond the end
            if http_status(error) == 416:
                return
            raise
    receiver.add(bytes(content))


def _receive_blocking(files: AbstractFileSystem, path: str, receiver: Receiver) -> None:
    """Receive by a blocking client: the size is looked up first, or the pieces are counted."""
    part = receiver.part
    if part is not None:
        bounds = slice(part.start, part.stop).indices(int(files.info(path)["size"]))
        if bounds[0] < bounds[1]:
            receiver.add(bytes(files.cat_file(path, start=bounds[0], end=bounds[1])))
    elif files.protocol == "memory":
        receiver.begin(partial=True, declared=int(files.info(path)["size"]))
        receiver.add(bytes(files.cat_file(path)))
    else:
        deadline = _Deadline()
        with files.open(path, "rb", block_size=0) as file:  # one request, read as it comes
            while piece := file.read(_PIECE):
                receiver.add(piece)
                if deadline.left(receiver.received) < 0:
                    raise TimeoutError


class _Deadline:
    """Time limit of a body, which grows with the bytes received."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    def left(self, received: int) -> float:
        """Return the seconds that are left."""
        return self._started + GRACE_SECONDS + received / LOWEST_RATE - time.monotonic()


@contextlib.asynccontextmanager
async def _in_time() -> AsyncIterator[Callable[[int], None]]:
    """Limit the time of a body; yields a function to be called with the bytes received."""
    # asyncio's limit uses the clock of the event loop, not time.monotonic
    deadline, clock = _Deadline(), asyncio.get_running_loop().time
    async with asyncio.timeout(deadline.left(0)) as limit:
        yield lambda received: limit.reschedule(clock() + deadline.left(received))
