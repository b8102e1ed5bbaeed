"""Bodies of responses, received in pieces: up to a given size, and no slower than a given rate.

What a server declares is not relied on: the pieces are counted as they come.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fsspec.asyn import sync

from logitcache.cache.store.failures import http_status
from logitcache.errors import CacheDamaged, StorageError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from fsspec import AbstractFileSystem

__all__ = ["Part", "Receiver", "receive", "web_size"]

GRACE_SECONDS = 60.0
"""After which a body has to have come at the lowest rate on average, from its request on."""

LOWEST_RATE = 20_000.0
"""Bytes a second. Eight bodies at a time over a line of 2 Mbit/s have 30 kB/s each."""

_PIECE = 2**18
_MOST_COUNTED = 2**28  # of a body that is received for the sake of its size
_NO_HEAD = {400, 401, 403, 405, 501}  # of servers, or signed addresses, that allow GET alone
_IDENTITY = {"Accept-Encoding": "identity"}  # a body is what is stored, and is as long


@dataclass(frozen=True)
class Part:
    """Which bytes of an object are requested: those of a slice that has no stop before its end.

    Attributes:
        start: The first byte, counted from the end if negative.
        stop: Behind the last one; None for the end.
    """

    start: int
    stop: int | None = None

    @property
    def wanted(self) -> int | None:
        """Bytes that a server may send at most, None where that is all up to the end."""
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
    """Counts the pieces of a body, and passes them on.

    Attributes:
        where: What is received, for messages.
        most: Bytes that it may have.
        take: What each piece is passed to.
        part: The part of the object that is requested; None for all of it.
        received: Bytes so far.
    """

    where: str
    most: int
    take: Callable[[bytes], object]
    part: Part | None = None
    received: int = field(default=0, init=False)

    def begin(self, *, partial: bool, declared: int | None) -> None:
        """Take note of what a response declares.

        Args:
            partial: Whether it is the part that was requested.
            declared: Bytes of the body; None where nothing is declared.

        Raises:
            StorageError: The server sends all of the object instead of the part.
            CacheDamaged: The object is too large.
        """
        got = "all bytes" if declared is None else f"{declared} bytes"
        if self.part is not None and not partial and self.part.start > 0:
            raise self._no_ranges(got)
        if declared is not None:
            self._check(declared, got)

    def add(self, piece: bytes) -> None:
        """Pass on a piece; raise what :meth:`begin` raises."""
        self.received += len(piece)
        self._check(self.received, f"{self.received} bytes or more")
        self.take(piece)

    def _check(self, size: int, got: str) -> None:
        wanted = self.part.wanted if self.part is not None else None
        if wanted is not None and size > wanted:
            raise self._no_ranges(got)
        if size > self.most:
            raise CacheDamaged(
                "an object is larger than it can be",
                where=self.where,
                expected=f"at most {self.most} bytes",
                got=got,
            )

    def _no_ranges(self, got: str) -> StorageError:
        wanted = self.part.wanted if self.part is not None else None
        return StorageError(
            "this server does not support Range requests",
            where=self.where,
            expected="a part of the object" if wanted is None else f"{wanted} bytes",
            got=f"{got}, of the whole object",
            hint="reading whole objects works: train, and verify without --quick",
        )


def receive(files: AbstractFileSystem, path: str, receiver: Receiver) -> None:
    """Receive an object, or the part of it that the receiver is for, by one request.

    Args:
        files: The file system, of the process that calls.
        path: Path of the object in it.
        receiver: What counts the pieces.

    Raises:
        FileNotFoundError: There is none.
        CacheDamaged: It is larger than it may be.
        StorageError: The server compresses, or sends all where a part was requested.
        Exception: What the client raises where the request fails; ``TimeoutError`` where the body
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
    """Return the bytes of an object of a web server, which are counted if it does not say.

    Raises:
        Exception: What :func:`receive` raises.
    """
    size: int = sync(files.loop, _web_size, files, url, where)
    return size


async def _web_size(files: Any, url: str, where: str) -> int:
    session = await files.set_session()
    address, receiver = files.encode_url(url), Receiver(where, _MOST_COUNTED, lambda _: None)
    async with _in_time() as in_time:
        async with session.head(address, headers=_IDENTITY, allow_redirects=True) as answer:
            if answer.status not in _NO_HEAD:
                _check_answer(answer, url, where)
                if answer.content_length is not None:
                    return int(answer.content_length)
        async with session.get(address, headers=_IDENTITY) as answer:
            _check_answer(answer, url, where)
            if answer.content_length is not None:
                return int(answer.content_length)
            await _receive_pieces(answer, receiver, in_time)
    return receiver.received


async def _receive_web(files: Any, url: str, receiver: Receiver) -> None:
    session = await files.set_session()
    headers = dict(_IDENTITY)
    if receiver.part is not None:
        headers["Range"] = receiver.part.header
    async with _in_time() as in_time, session.get(files.encode_url(url), headers=headers) as answer:
        if answer.status == 416 and receiver.part is not None:
            return  # the part begins behind the end
        _check_answer(answer, url, receiver.where)
        partial = answer.status == 206 or _is_part(answer.headers.get("Content-Range"))
        receiver.begin(partial=partial, declared=answer.content_length)
        await _receive_pieces(answer, receiver, in_time)


def _is_part(content_range: str | None) -> bool:
    """Return whether a response of status 200 is a part all the same, as those of rclone are."""
    return content_range is not None and content_range.startswith("bytes ")


async def _receive_pieces(answer: Any, receiver: Receiver, in_time: Callable[[int], None]) -> None:
    async for piece in answer.content.iter_any():
        receiver.add(piece)
        in_time(receiver.received)


def _check_answer(answer: Any, url: str, where: str) -> None:
    """Raise what is wrong with the head of a response; its body is not read."""
    if answer.status == 404:
        raise FileNotFoundError(url)
    answer.raise_for_status()
    if not 200 <= answer.status < 300:  # a redirection to nowhere
        raise StorageError("the store refused", where=where, got=f"HTTP status {answer.status}")
    encoding = answer.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in {"", "identity"}:
        raise StorageError(
            "this server compresses what it sends",
            where=where,
            expected="the bytes that are stored, as 'Accept-Encoding: identity' requests",
            got=f"Content-Encoding: {encoding[:40]!r}",
            hint="turn compression off for this folder, in nginx by 'gzip off; gzip_static off;'",
        )


async def _receive_s3(files: Any, path: str, receiver: Receiver) -> None:
    bucket, key, _ = files.split_path(path)
    part = {} if receiver.part is None else {"Range": receiver.part.header}
    async with _in_time() as in_time:
        try:
            answer = await files._call_s3("get_object", Bucket=bucket, Key=key, **part)
        except OSError as error:
            if part and http_status(error) == 416:
                return
            raise
        body = answer["Body"]
        try:
            partial = answer["ResponseMetadata"].get("HTTPStatusCode") == 206
            partial = partial or _is_part(answer.get("ContentRange"))
            receiver.begin(partial=partial, declared=answer.get("ContentLength"))
            while piece := await body.read(_PIECE):
                receiver.add(piece)
                in_time(receiver.received)
        finally:
            body.close()


async def _receive_range(files: Any, path: str, receiver: Receiver) -> None:
    """Receive by a client that returns bodies whole: one byte more than there may be is requested.

    How long that takes cannot be seen as it comes, so all of it has the time of the largest body.
    """
    part = receiver.part or Part(0, receiver.most + 1)
    wanted = part.wanted
    most = receiver.most if wanted is None else min(wanted, receiver.most)
    async with asyncio.timeout(GRACE_SECONDS + most / LOWEST_RATE):
        try:
            content = await files._cat_file(path, start=part.start, end=part.stop)
        except Exception as error:
            if (
                http_status(error) == 416
            ):  # an empty object has no range, or it begins behind the end
                return
            raise
    receiver.add(bytes(content))


def _receive_blocking(files: AbstractFileSystem, path: str, receiver: Receiver) -> None:
    """Receive by a client that blocks: the size is looked up first, or the pieces are counted."""
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
    """The time that a body has; it grows with the bytes that have come."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    def left(self, received: int) -> float:
        """Return the seconds that are left."""
        return self._started + GRACE_SECONDS + received / LOWEST_RATE - time.monotonic()


@contextlib.asynccontextmanager
async def _in_time() -> AsyncIterator[Callable[[int], None]]:
    """Limit the time of a body; what is yielded is called with the bytes that have come."""
    deadline, clock = _Deadline(), asyncio.get_running_loop().time
    async with asyncio.timeout(deadline.left(0)) as limit:
        yield lambda received: limit.reschedule(clock() + deadline.left(received))
