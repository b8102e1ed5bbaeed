"""What a server sends: no more than an object can have, in bounded time, and as it is stored."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING, Any

import pytest
from fsspec.asyn import AsyncFileSystem

from logitcache.cache.format.documents import MOST_NUMBERED, numbers
from logitcache.cache.store import bodies
from logitcache.cache.store.failures import Failure
from logitcache.cache.store.open import locate
from logitcache.errors import CacheDamaged, StorageError
from tests.remote.servers import Answer, Behavior, FaultyServer, from_folder, from_upstream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from logitcache.cache.store.base import Location

PIECE = bytes(2**16)
XML = {"Content-Type": "application/xml"}


def endless() -> Iterator[bytes]:
    while True:
        yield PIECE


def trickle(seconds: float, pieces: int) -> Iterator[bytes]:
    for _ in range(pieces):
        yield b"x" * 100
        time.sleep(seconds)


def serving(body: Callable[[], bytes | Iterable[bytes]], **headers: str) -> Any:
    """Return a backend that sends the same for every path."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda _request, _behavior: Answer(200, named, body())


@pytest.fixture(params=["http", "s3"])
def at(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Location]:
    """Return the location that a server is, as a web server or as a store."""
    if request.param == "s3":
        request.getfixturevalue("s3")

    def locate_at(server: FaultyServer) -> Location:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        return locate("s3://bucket/c" if request.param == "s3" else f"{server.url}/c")

    return locate_at


@pytest.mark.parametrize("headers", [{}, {"Content_Length": str(2**50)}])
def test_a_body_without_an_end_is_left(
    at: Callable[..., Location], headers: dict[str, str]
) -> None:
    with FaultyServer(serving(endless, **headers)) as server:
        location = at(server)
        for read in (
            lambda: location.read("x", most=1000),
            lambda: location.digest("x", most=1000),
        ):
            with pytest.raises(
                CacheDamaged, match=r"larger than the format allows[\s\S]*/c/x[\s\S]*at most"
            ):
                read()
        with pytest.raises(StorageError, match="does not support Range"):
            location.read("x", 0, 1000)
    assert len(server.log) == 3, "none of them is requested again"
    assert all(request.bytes < 2**24 for request in server.log), "buffers of sockets, and no more"


def test_an_object_has_what_it_can_have(at: Callable[..., Location]) -> None:
    with FaultyServer(serving(lambda: b"0123456789")) as server:
        location = at(server)
        assert location.read("x", most=10) == b"0123456789"
        with pytest.raises(CacheDamaged, match=r"at most 9 bytes[\s\S]*10 bytes"):
            location.read("x", most=9)
    assert [request.method for request in server.log] == ["GET", "GET"], "no size is requested"


@pytest.mark.parametrize("kind", ["memory", "s3", "http"])
def test_an_empty_object_is_empty(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    (tmp_path / "empty").write_bytes(b"")
    if kind == "s3":
        request.getfixturevalue("s3")
    with FaultyServer(from_folder(tmp_path)) as server:
        if kind != "http":
            url = {"s3": "s3://bucket/empty", "memory": "memory://empty"}[kind]
            locate(url, write=True).write("empty", b"")
        location = locate(server.url) if kind == "http" else locate(url)
        for part in ((), (0, 5), (3, 5), (-4,), (2, 2)):
            assert location.read("empty", *part, most=10) == b"", part
            assert location.read("absent", *part, most=10) is None
        assert location.size("empty") == 0


def test_memory_has_a_bound_too() -> None:
    location = locate("memory://bounded", write=True)
    location.write("x", bytes(100))
    assert location.read("x", most=100) == bytes(100)
    for read in (location.read, location.digest):
        with pytest.raises(CacheDamaged, match="larger than the format allows"):
            read("x", most=99)


def test_a_server_that_compresses_is_refused() -> None:
    with FaultyServer(serving(lambda: b"\x1f\x8b", Content_Encoding="gzip")) as server:
        location = locate(f"{server.url}/c")
        digest = partial(location.digest, most=100)
        for read in (location.read, location.size, digest):
            with pytest.raises(
                StorageError, match=r"compresses[\s\S]*'gzip'[\s\S]*gzip off"
            ) as caught:
                read("x")
            assert caught.value.exit_code == 3
    assert len(server.log) == 3, "asking again would not help"


@pytest.mark.usefixtures("fleeting")
def test_a_body_that_trickles_ends(
    at: Callable[..., Location], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [lambda: iter([b"whole"]), lambda: trickle(0.1, 300)]
    with FaultyServer(lambda *_: Answer(200, {}, answers[0]())) as server:
        location = at(server)
        assert location.read("x") == b"whole"
        del answers[0]
        monkeypatch.setattr(bodies, "GRACE_SECONDS", 0.5)
        started = time.monotonic()
        with pytest.raises(StorageError, match=Failure.SLOW.value):
            location.read("x")
        assert time.monotonic() - started < 15


def test_a_slow_line_is_no_fault(
    at: Callable[..., Location], monkeypatch: pytest.MonkeyPatch
) -> None:
    with FaultyServer(serving(lambda: trickle(0.1, 10), Content_Length="1000")) as server:
        location = at(server)
        assert location.read("x") == b"x" * 1000
        monkeypatch.setattr(bodies, "GRACE_SECONDS", 0.5)
        monkeypatch.setattr(bodies, "LOWEST_RATE", 200)
        assert location.read("x") == b"x" * 1000, "twice as long as the grace"


def test_a_size_that_is_not_given_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces: list[Callable[[], Iterable[bytes]]] = [lambda: iter([PIECE] * 3)]
    with FaultyServer(lambda request, _: Answer(200, {}, pieces[0]())) as server:
        location = locate(server.url)
        assert location.size("x") == 3 * len(PIECE)
        monkeypatch.setattr(bodies, "_MOST_COUNTED", 2**20)
        pieces[0] = endless
        with pytest.raises(CacheDamaged, match="larger than the format allows"):
            location.size("x")


def test_a_size_is_requested_by_get_where_head_is_not_allowed(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"0123456789")
    folder = from_folder(tmp_path)

    def get_alone(request: Any, behavior: Behavior) -> Answer:
        return Answer(403, {}, b"") if request.command == "HEAD" else folder(request, behavior)

    with FaultyServer(get_alone) as server:
        location = locate(server.url)
        assert (location.size("x"), location.size("y")) == (10, None)


@pytest.mark.requirement("F5.2")
@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 7, 8, 9, 100])
def test_documents_are_counted_where_nothing_can_be_listed(count: int) -> None:
    known = {f"/c/n/{number}.json" for number in range(1, count + 1)}

    def numbered(request: Any, _: Behavior) -> Answer:
        return Answer(200 if request.path in known else 404, {}, b"")

    with FaultyServer(numbered) as server:
        assert numbers(locate(f"{server.url}/c"), "n") == list(range(1, count + 1))
    assert len(server.log) <= max(count + 1, 14)


def test_a_server_that_has_everything_is_found_out() -> None:
    with (
        FaultyServer(serving(lambda: b"<html>welcome</html>")) as server,
        pytest.raises(CacheDamaged, match=r"more numbered documents[\s\S]*404"),
    ):
        numbers(locate(f"{server.url}/c"), "n")
    assert len(server.log) < 20


@pytest.mark.requirement("F5.2")
def test_the_largest_number_of_documents_is_exact() -> None:
    class Counted:
        lists = False

        def size(self, key: str) -> int | None:
            return 1 if int(key.removeprefix("n/").removesuffix(".json")) <= self.count else None

        def __init__(self, count: int) -> None:
            self.count = count

    location: Any = Counted(MOST_NUMBERED)
    assert len(numbers(location, "n")) == MOST_NUMBERED
    location = Counted(MOST_NUMBERED + 1)
    with pytest.raises(CacheDamaged, match="more numbered documents"):
        numbers(location, "n")


@pytest.mark.requirement("F5.2")
def test_too_many_documents_are_refused_where_they_are_listed() -> None:
    listed = ["x.json", "0.json", "01.json", "9" * 5000 + ".json", "10.json", "2.json"]

    class Listing:
        lists = True

        def names(self, prefix: str) -> list[str]:
            return listed

    location: Any = Listing()
    assert numbers(location, "n") == [2, 10]
    listed += [f"{number}.json" for number in range(11, MOST_NUMBERED + 10)]
    with pytest.raises(CacheDamaged, match="more numbered documents"):
        numbers(location, "n")


@pytest.mark.parametrize(("part", "found"), [((0, 99), b"0123456789"), ((-99,), b"0123456789")])
def test_a_server_without_range_may_send_no_more_than_the_part(
    part: tuple[int, ...], found: bytes, tmp_path: Path
) -> None:
    (tmp_path / "x").write_bytes(b"0123456789")
    with FaultyServer(from_folder(tmp_path), Behavior(ranges=False)) as server:
        location = locate(server.url)
        assert location.read("x", *part) == found
        for other in ((2,), (2, 99), (-3,), (0, 9)):
            with pytest.raises(StorageError, match="does not support Range requests"):
                location.read("x", *other)


class Ranged(AsyncFileSystem):  # type: ignore[misc]
    """A client that returns bodies whole, as that of Google's store does."""

    protocol = "gs"
    cachable = False
    content = b""

    async def _cat_file(self, path: str, start: int, end: int | None) -> bytes:
        if start >= len(self.content):
            error = Exception("Requested range not satisfiable")
            error.code = 416  # type: ignore[attr-defined]
            raise error
        self.requests = (start, end)
        return self.content[start:end]


class Streaming:
    """A client that blocks and streams, as that of Hugging Face does."""

    protocol = "hf"
    async_impl = False
    seconds = 0.0

    def open(self, path: str, mode: str, *, block_size: int) -> Any:
        assert block_size == 0, "one request, and none for the size"
        time.sleep(self.seconds)
        return BytesIO(b"0123456789")

    def info(self, path: str) -> dict[str, int]:
        return {"size": 10}

    def cat_file(self, path: str, start: int, end: int) -> bytes:
        return b"0123456789"[start:end]


def received(files: Any, most: int, *part: int) -> bytes:
    pieces: list[bytes] = []
    wanted = bodies.Part(*part) if part else None
    bodies.receive(files, "x", bodies.Receiver("x", most, pieces.append, wanted))
    return b"".join(pieces)


def test_a_client_that_returns_bodies_whole_is_used_for_a_part() -> None:
    files = Ranged()
    assert received(files, 10) == b""
    files.content = b"0123456789"
    assert received(files, 10) == b"0123456789"
    assert files.requests == (0, 11)
    assert received(files, 10, 2, 4) == b"23"
    with pytest.raises(CacheDamaged, match="larger than the format allows"):
        received(files, 9)
    assert files.requests == (0, 10)


def test_a_client_that_blocks_is_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    files = Streaming()
    assert received(files, 10) == b"0123456789"
    assert received(files, 10, 2, 4) == b"23"
    assert received(files, 10, -3) == b"789"
    with pytest.raises(CacheDamaged, match="larger than the format allows"):
        received(files, 9)
    files.seconds = 0.02
    monkeypatch.setattr(bodies, "GRACE_SECONDS", 0.01)
    with pytest.raises(TimeoutError):
        received(files, 10)


def test_a_part_is_known_by_its_content_range() -> None:
    """As rclone sends it, with a status of 200."""
    headers = {"Content-Range": "bytes 2-3/10"}
    with FaultyServer(lambda *_: Answer(200, headers, b"23")) as server:
        assert locate(server.url).read("x", 2, 4) == b"23"


# -- errors of answers that are no use ------------------------------------------------------


STATUSES = {
    400: Failure.REFUSED,
    422: Failure.REFUSED,
    451: Failure.REFUSED,
    501: Failure.REFUSED,
    507: Failure.REFUSED,
    403: Failure.DENIED,
    408: Failure.SLOW,
    425: Failure.BUSY,
    429: Failure.BUSY,
    500: Failure.BUSY,
    504: Failure.BUSY,
}


@pytest.mark.usefixtures("fleeting")
def test_an_answer_is_judged_by_its_status(at: Callable[..., Location]) -> None:
    answer = [Answer(404, XML, b"")]
    with FaultyServer(lambda *_: answer[0]) as server:
        location = at(server)
        for status, failure in STATUSES.items():
            answer[0] = Answer(status, XML, b"<html>not for you</html>")
            message = rf"{failure.value}[\s\S]*HTTP status {status}"
            for read in (location.read, location.size):
                server.clear()
                with pytest.raises(StorageError, match=message):
                    read("x")
                requests = [(request.method, request.path) for request in server.log]
                # a client of S3 also requests the region of the bucket
                again = requests.count(requests[0]) > 1
                assert again == (failure in {Failure.SLOW, Failure.BUSY}), (status, requests)


@contextmanager
def raw_server(*answers: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """Serve bytes as they are, one answer a connection, the last one again and again."""
    requests: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:  # closed: the test is over
                    return
                with connection:
                    requests.append(connection.recv(2**16))
                    connection.sendall(answers[min(len(requests), len(answers)) - 1])

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listening.getsockname()[1]}", requests
        listening.shutdown(socket.SHUT_RDWR)
    thread.join()


WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbody"
FOUND = b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nConnection: close\r\n"
BROKEN = {
    "short": b"HTTP/1.1 200 OK\r\nContent-Length: 400\r\n\r\nbody",
    "chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\nzz\r\n",
    "half a chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n400\r\nbody",
    "head": b"HTTP/1.1 200 OK\r\nConte",
    "nothing": b"",
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_a_cut_answer_is_requested_again(broken: bytes) -> None:
    with raw_server(WHOLE, broken, broken, WHOLE) as (address, requests):
        location = locate(f"http://{address}/c")
        assert location.read("x") == location.read("x") == b"body"
        assert len(requests) == 4


@pytest.mark.usefixtures("fleeting")
@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_answers_that_are_always_cut_are_named(broken: bytes) -> None:
    with raw_server(WHOLE, broken) as (address, requests):
        location = locate(f"http://{address}/c")
        assert location.read("x") == b"body"
        with pytest.raises(
            StorageError, match=r"was cut repeatedly|response is not HTTP"
        ) as caught:
            location.read("x")
        assert len(requests) > 3
        assert "400" not in str(caught.value).replace(address, ""), "nobody sent that status"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"SSH-2.0-OpenSSH\r\n", "the response is not HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n", "the response is not HTTP"),
        (FOUND + b"Location: /c/x\r\n\r\n", "redirects endlessly"),
        (FOUND + b"\r\n", "status 302"),
        (FOUND + b"Location: ftp://h/\r\n\r\n", "refused"),
        (b"HTTP/1.1 304 Not Modified\r\n\r\n", "status 304"),
    ],
)
def test_an_answer_that_is_none_is_not_requested_again(answer: bytes, message: str) -> None:
    with raw_server(answer) as (address, requests):
        with pytest.raises(StorageError, match=message):
            locate(f"http://{address}/c").read("x")
        assert len(requests) == (10 if message == "redirects endlessly" else 1), (
            "redirections are counted"
        )


@pytest.mark.parametrize("url", ["https://ADDRESS/c", "s3://bucket/c"])
def test_a_connection_that_is_not_secure_is_named(
    url: str, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert s3
    with raw_server(b"HTTP/1.1 400 Bad Request\r\n\r\n") as (address, requests):
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"https://{address}")
        with pytest.raises(StorageError, match=r"no secure connection[\s\S]*certificate"):
            locate(url.replace("ADDRESS", address)).read("x")
        assert len(requests) == 1


def test_a_name_that_nobody_knows_is_looked_up_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Unless its server has answered before: then a network that is away may come back."""
    looked_up: list[str] = []
    known, left = socket.getaddrinfo, [10**9]

    def unknown(host: str, *arguments: Any, **options: Any) -> Any:
        if host != "cache.example":
            return known(host, *arguments, **options)
        looked_up.append(host)
        if len(looked_up) <= left[0]:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return known("127.0.0.1", *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    (tmp_path / "x").write_bytes(b"1")
    with FaultyServer(from_folder(tmp_path)) as server:
        location: Any = locate(server.url.replace("127.0.0.1", "cache.example"))
        with pytest.raises(StorageError, match="host name of the server is unknown"):
            location.read("x")
        assert len(looked_up) == 1
        left[0], location._reached = 3, True
        assert location.read("x") == b"1"
        assert len(looked_up) == 4


def test_an_object_of_a_store_takes_one_request(
    s3_server: tuple[str, int], s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert s3
    with FaultyServer(from_upstream(s3_server)) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        location = locate("s3://bucket/once", write=True)
        location.write("x", bytes(10**6))
        server.clear()
        assert location.read("x", most=10**6) == bytes(10**6)
        assert location.read("x", -4, most=10**6) == bytes(4)
        assert location.digest("x", most=10**6) is not None
        assert [(request.method, request.ranged) for request in server.log] == [
            ("GET", False),
            ("GET", True),
            ("GET", False),
        ]
