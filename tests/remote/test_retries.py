"""Requests that are tried again: how long, how far apart, and as ``Retry-After`` has it."""

from __future__ import annotations

import re
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any

import pytest

from logitcache.cache.store import remote, retry
from logitcache.cache.store.failures import TRANSIENT, Failure, failure_of, retry_after
from logitcache.cache.store.open import locate
from logitcache.cache.store.remote import RemoteLocation
from logitcache.cache.store.retry import PATIENCE, RetryPolicy, environment_policy
from logitcache.cli.app import main
from logitcache.errors import StorageError, UsageError
from tests.remote.servers import Behavior, FaultyServer, from_folder, from_upstream

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Clock:
    """A time that passes by waiting alone."""

    def __init__(self) -> None:
        self.now = 0.0
        self.waits: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds

    def call(self, policy: RetryPolicy, request: Any) -> Any:
        return policy.call(request, sleep=self.sleep, clock=lambda: self.now)


class Busy(Exception):
    """As a client raises it for an answer of a server."""

    def __init__(self, status: int, **headers: str) -> None:
        self.status = status
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


def failing(error: Exception) -> Any:
    def request() -> None:
        raise error

    return request


def test_waits_grow_and_end_with_the_patience() -> None:
    clock, policy = Clock(), RetryPolicy(120, first_seconds=1, longest_seconds=8)
    with pytest.raises(ConnectionResetError):
        clock.call(policy, failing(ConnectionResetError()))
    assert clock.now == pytest.approx(120)
    assert all(0 <= wait <= min(8, 2**n) for n, wait in enumerate(clock.waits))
    assert len(clock.waits) > 15
    assert len(set(clock.waits)) == len(clock.waits), "drawn: clients do not come back together"


def test_an_outage_shorter_than_the_patience_is_not_noticed() -> None:
    clock = Clock()

    def request() -> str:
        clock.now += 50  # the last answer before the outage took a while
        if clock.now < 160:
            raise ConnectionResetError
        return "answer"

    assert clock.call(RetryPolicy(120), request) == "answer"


def test_without_patience_there_is_one_attempt() -> None:
    clock = Clock()
    with pytest.raises(ConnectionResetError):
        clock.call(RetryPolicy(0), failing(ConnectionResetError()))
    assert clock.waits == []


def test_an_interrupted_process_waits_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(retry, "_ENDED", threading.Event())
    retry.end_waits()
    with pytest.raises(ConnectionResetError):
        clock.call(RetryPolicy(120), failing(ConnectionResetError()))
    assert clock.waits == []


@pytest.mark.parametrize("status", [429, 503])
def test_a_server_sets_the_wait(status: int) -> None:
    clock, policy = Clock(), RetryPolicy(120, first_seconds=0)
    with pytest.raises(Busy):
        clock.call(policy, failing(Busy(status, Retry_After="50")))
    assert clock.waits == pytest.approx([50, 50, 20]), "as far as the patience goes"


def test_the_wait_of_a_server_is_seconds_or_a_date() -> None:
    now = datetime(2026, 5, 1, tzinfo=UTC)
    then, date = format_datetime(now + timedelta(seconds=30), usegmt=True), format_datetime(now)
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=60))
    assert retry_after(Busy(429, Retry_After="7")) == 7
    assert retry_after(Busy(429, retry_after=then, Date=date)) == 30
    assert retry_after(Busy(429, Retry_After=soon)) == pytest.approx(60, abs=5)
    assert retry_after(Busy(429, Retry_After=format_datetime(now), Date=then)) == 0
    assert retry_after(Busy(500, Retry_After="7")) is None
    for odd in ("", "-1", "soon", "9" * 5000, "1e9", "٣", "Fri, 99 Foo 2026 00:00:00 GMT"):
        assert retry_after(Busy(503, Retry_After=odd)) is None, odd
    wrapped = OSError("translated")
    wrapped.__cause__ = boto = Exception()
    boto.response = {  # type: ignore[attr-defined]
        "ResponseMetadata": {"HTTPStatusCode": 503, "HTTPHeaders": {"retry-after": "3"}}
    }
    assert retry_after(wrapped) == 3


def test_what_is_not_known_is_not_tried_again() -> None:
    assert failure_of(RuntimeError("?")) is Failure.REFUSED
    assert failure_of(FileNotFoundError()) is Failure.ABSENT
    wrapped = OSError("translated")
    wrapped.__cause__ = ConnectionResetError()
    assert failure_of(wrapped) is Failure.CUT


@pytest.mark.parametrize("status", [*range(300, 309), *range(400, 430), 451, *range(500, 512)])
def test_every_status_has_a_meaning(status: int) -> None:
    """Those that may be over after a while, and no others, are tried again."""
    passing = {408, 409, 425, 429, 500, 502, 503, 504, 506, 508, 509, 510}
    assert (failure_of(Busy(status)) in TRANSIENT) == (status in passing)


@pytest.fixture
def web(tmp_path: Path) -> Iterator[FaultyServer]:
    (tmp_path / "x").write_bytes(b"content")
    with FaultyServer(from_folder(tmp_path)) as server:
        yield server


def test_an_outage_of_a_server_is_waited_for(web: FaultyServer) -> None:
    location = locate(web.url)
    assert location.read("x") == b"content"
    web.behavior = Behavior(down_until=time.monotonic() + 0.5)
    assert location.read("x") == b"content"
    web.behavior = Behavior(down_until=time.monotonic() + 0.5)
    assert location.size("x") == 7


def test_a_long_outage_is_reported_while_it_lasts(
    web: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_NOTICE_SECONDS", 0.1)
    web.behavior = Behavior(down_until=time.monotonic() + 0.5)
    with pytest.warns(RuntimeWarning, match=r"127.0.0.1.*cut.*tried again for 20 seconds"):
        assert locate(web.url).read("x") == b"content"


@pytest.mark.parametrize("kind", ["http", "s3"])
def test_a_busy_server_gets_another_request_when_it_wants(
    kind: str,
    web: FaultyServer,
    s3: str,
    s3_server: tuple[str, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert s3
    with FaultyServer(from_upstream(s3_server)) as between:
        monkeypatch.setenv("AWS_ENDPOINT_URL", between.url)
        locate("s3://bucket/busy", write=True).write("x", b"content")
        server = {"http": web, "s3": between}[kind]
        location = locate({"http": web.url, "s3": "s3://bucket/busy"}[kind])
        assert location.read("x") == b"content"
        server.clear()
        server.behavior = Behavior(fail_next=1, status=429, headers={"Retry-After": "1"})
        started = time.monotonic()
        assert location.read("x") == b"content"
        assert time.monotonic() - started >= 1
        assert [request.status for request in server.log] == [429, 200]


@pytest.mark.usefixtures("fleeting")
def test_a_server_that_wants_more_than_the_patience_is_named(web: FaultyServer) -> None:
    web.behavior = Behavior(failing=1, status=429, headers={"Retry-After": "300"})
    with pytest.raises(StorageError, match=r"429, Retry-After: 300 s[\s\S]*--retry-seconds"):
        locate(web.url).read("x")


def test_the_environment_says_how_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PATIENCE, raising=False)
    assert environment_policy().patience_seconds == 120
    monkeypatch.setenv(PATIENCE, "7.5")
    assert environment_policy().patience_seconds == 7.5
    monkeypatch.setattr(remote, "environment_policy", environment_policy)
    location = locate("http://127.0.0.1:9/c")
    assert isinstance(location, RemoteLocation)
    assert location._retries.patience_seconds == 7.5
    for odd in ("-1", "nan", "inf", "a while", "1e9"):
        monkeypatch.setenv(PATIENCE, odd)
        with pytest.raises(UsageError, match=rf"seconds for retries[\s\S]*{PATIENCE}"):
            locate("http://127.0.0.1:9/c")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--retry-seconds", "0.2", "verify", "URL"], 3, "does not respond|cut|busy"),
        (["--retry-seconds", "soon", "verify", "URL"], 2, "--retry-seconds"),
        (["--retry-seconds=-1", "verify", "URL"], 2, "--retry-seconds"),
        (["--retry-seconds", "1"], 2, "a command is missing"),
    ],
)
def test_the_command_line_says_how_long(
    arguments: list[str],
    code: int,
    message: str,
    web: FaultyServer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(PATIENCE, "100")
    monkeypatch.setattr(remote, "environment_policy", environment_policy)
    web.behavior = Behavior(failing=1)
    called = [web.url if argument == "URL" else argument for argument in arguments]
    monkeypatch.setattr("sys.argv", ["logitcache", *called])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == code
    assert re.search(message, capsys.readouterr().err)
