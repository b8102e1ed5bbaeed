"""Servers on 127.0.0.1 that fail the way real ones do: late, busy, cut off, without ranges.

And servers that do what a stranger's may do: bodies without an end, compressed, or byte by byte.
"""

from __future__ import annotations

import contextlib
import http.client
import random
import re
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, NamedTuple, Self
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

__all__ = [
    "Answer",
    "Behavior",
    "FaultyServer",
    "QuietServer",
    "Request",
    "from_folder",
    "from_upstream",
]

_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "server", "date"}


class Request(NamedTuple):
    """One line of the log: the request, and what was sent."""

    method: str
    path: str
    ranged: bool
    status: int
    bytes: int
    cut: bool


class Answer(NamedTuple):
    """What a backend says.

    Attributes:
        status: HTTP status.
        headers: All but the length of the body.
        body: Its bytes; or pieces, which are sent one by one without a length if the headers have
            none, until the client closes the connection.
    """

    status: int
    headers: dict[str, str]
    body: bytes | Iterable[bytes]


@dataclass
class Behavior:
    """How a server misbehaves.

    Attributes:
        latency: Seconds before every answer.
        failing: Share of requests that get a 503.
        cut: Share of answers that end half way.
        ranges: Whether Range is honored.
        fail_next: How many of the next requests get a 503.
        status: What they get instead of it.
        headers: What it comes with.
        down_until: By ``time.monotonic()``: until then connections are closed without an answer.
    """

    latency: float = 0.0
    failing: float = 0.0
    cut: float = 0.0
    ranges: bool = True
    fail_next: int = 0
    status: int = 503
    headers: dict[str, str] = field(default_factory=dict)
    down_until: float = 0.0
    seed: int = 0
    draw: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.draw = random.Random(self.seed)


def from_folder(root: Path) -> Callable[[Any, Behavior], Answer]:
    """Return a backend that serves the files of a folder, read-only."""

    def answer(request: BaseHTTPRequestHandler, behavior: Behavior) -> Answer:
        path = root / unquote(urlsplit(request.path).path).lstrip("/")
        if not path.is_file():
            return Answer(404, {}, b"")
        content = path.read_bytes()
        part = _RANGE.fullmatch(request.headers.get("Range", ""))
        if part is None or not behavior.ranges:
            return Answer(200, {}, content)
        start, stop = part[1], part[2]
        first = int(start) if start else max(0, len(content) - int(stop))
        last = int(stop) + 1 if start and stop else len(content)
        held = content[first:last]
        where = f"bytes {first}-{first + len(held) - 1}/{len(content)}"
        return Answer(206, {"Content-Range": where}, held)

    return answer


def from_upstream(address: tuple[str, int]) -> Callable[[Any, Behavior], Answer]:
    """Return a backend that passes everything on to another server."""

    def answer(request: BaseHTTPRequestHandler, _: Behavior) -> Answer:
        length = int(request.headers.get("Content-Length", 0))
        body = request.rfile.read(length)
        if len(body) < length:  # of a client that was killed
            return Answer(400, {}, b"")
        connection = http.client.HTTPConnection(*address, timeout=30)
        try:
            connection.request(request.command, request.path, body, dict(request.headers))
            found = connection.getresponse()
            headers = {k: v for k, v in found.getheaders() if k.lower() not in _HOP}
            content = found.read()
            if request.command == "HEAD":
                headers["Content-Length"] = found.getheader("Content-Length") or "0"
            return Answer(found.status, headers, content)
        finally:
            connection.close()

    return answer


class QuietServer(ThreadingHTTPServer):
    """A server of many threads that prints nothing of clients that are gone."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print other errors alone: a client closes the connection of an endless body."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class FaultyServer:
    """A server of many threads with a log.

    Args:
        backend: What answers when nothing is injected.
        behavior: What is injected; may be changed while it runs.

    Attributes:
        log: Every request, in the order of the answers.
        injected: How many of them were failed or cut on purpose.
    """

    def __init__(
        self, backend: Callable[[Any, Behavior], Answer], behavior: Behavior | None = None
    ) -> None:
        self.behavior = behavior or Behavior()
        self.log: list[Request] = []
        self.injected = 0
        self._lock = threading.Lock()
        self._streamed = threading.Condition(self._lock)
        self._streams = 0
        self._server = QuietServer(("127.0.0.1", 0), _handler(self, backend))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # A stream is logged when the server sees that its client is gone: later than the client.
        with self._streamed:
            self._streamed.wait_for(lambda: self._streams == 0, timeout=10)
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def clear(self) -> None:
        """Forget the log."""
        self.log.clear()
        self.injected = 0

    def note(self, request: Request, *, injected: bool) -> None:
        """Write a line of the log."""
        with self._lock:
            self.log.append(request)
            self.injected += injected

    @contextlib.contextmanager
    def stream(self) -> Iterator[None]:
        """Count a body that is sent piece by piece as long as it is sent."""
        with self._lock:
            self._streams += 1
        try:
            yield
        finally:
            with self._streamed:
                self._streams -= 1
                self._streamed.notify_all()

    def fault(self) -> str | None:
        """Draw what happens to the next request."""
        with self._lock:
            if self.behavior.fail_next > 0:
                self.behavior.fail_next -= 1
                return "busy"
            drawn = self.behavior.draw.random()
        if drawn < self.behavior.failing:
            return "busy"
        return "cut" if drawn < self.behavior.failing + self.behavior.cut else None


def _handler(
    server: FaultyServer, backend: Callable[[Any, Behavior], Answer]
) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def _answer(self) -> None:
            time.sleep(server.behavior.latency)
            if time.monotonic() < server.behavior.down_until:
                self.close_connection = True
                server.note(Request(self.command, self.path, False, 0, 0, True), injected=True)
                return
            fault = server.fault()
            found = backend(self, server.behavior)
            if fault == "busy":
                found = Answer(server.behavior.status, server.behavior.headers, b"busy")
            body = found.body
            if not isinstance(body, bytes):
                self._send_pieces(found, body)
                return
            sent = body if fault != "cut" else body[: len(body) // 2]
            server.note(
                Request(
                    method=self.command,
                    path=self.path,
                    ranged="Range" in self.headers,
                    status=found.status,
                    bytes=len(sent),
                    cut=fault == "cut",
                ),
                injected=fault is not None,
            )
            self.send_response(found.status)
            for name, value in found.headers.items():
                self.send_header(name, value)
            if "Content-Length" not in found.headers:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(sent)
            if fault == "cut":
                self.close_connection = True
                self.wfile.flush()

        def _send_pieces(self, found: Answer, pieces: Iterable[bytes]) -> None:
            self.close_connection = True
            with server.stream():
                self.send_response(found.status)
                for name, value in {**found.headers, "Connection": "close"}.items():
                    self.send_header(name, value)
                self.end_headers()
                count = 0
                with contextlib.suppress(ConnectionError):
                    for piece in pieces if self.command != "HEAD" else ():
                        self.wfile.write(piece)
                        count += len(piece)
                ranged = "Range" in self.headers
                line = Request(self.command, self.path, ranged, found.status, count, False)
                server.note(line, injected=False)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _answer  # noqa: N815  # http.server's names

        def log_message(self, *_: Any) -> None:
            return

    return Handler
