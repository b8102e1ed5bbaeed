"""Servers that stall, flood or send something else, and URLs that can mean two things."""

from __future__ import annotations

import itertools
import re
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from tests.hostile.inputs import intact
from tests.hostile.test_hostile import MEGABYTES, UNPRINTABLE
from tests.hostile.visit import Outcome, visit
from tests.remote.servers import Answer, Behavior, FaultyServer, from_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PATIENCE = {"LOGITCACHE_RETRY_SECONDS": "0.5"}


def endless() -> Iterator[bytes]:
    return itertools.repeat(b"{" * 2**16)


def always(status: int, headers: dict[str, str], body: Callable[[], Any]) -> Callable[..., Answer]:
    return lambda request, _: Answer(status, headers, body())


SERVERS: dict[str, tuple[Callable[..., Answer], str, int]] = {
    "a body without an end": (
        always(200, {}, endless),
        "larger than the format allows|too large",
        4,
    ),
    "a length of an exabyte": (
        always(200, {"Content-Length": str(2**60)}, endless),
        "larger than the format allows",
        1,
    ),
    "gzip that was not requested": (
        always(200, {"Content-Encoding": "gzip"}, lambda: b"\x1f\x8b" + bytes(100)),
        "compresses",
        3,
    ),
    "429 for ever": (always(429, {"Retry-After": "1000"}, bytes), "busy", 3),
    "503 for ever": (always(503, {}, bytes), "busy", 3),
    "400": (always(400, {}, bytes), "refused", 3),
    "401": (always(401, {}, bytes), "denied access", 3),
    "a page of HTML for everything": (
        always(200, {}, lambda: b"<!DOCTYPE html><title>Log in</title>"),
        "not a logitcache cache",
        1,
    ),
    "redirects in a circle": (
        lambda request, _: Answer(302, {"Location": request.path}, b""),
        "redirect|refused|circle",
        3,
    ),
    "a redirect to a file of the user": (
        always(302, {"Location": "file:///etc/passwd"}, bytes),
        "refused|redirect|address",
        3,
    ),
    "nothing": (always(404, {}, bytes), "no cache here", 1),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("served") / "cache"
    intact(path)
    return path


def check(outcomes: dict[str, Outcome] | int, says: str, code: int) -> None:
    assert isinstance(outcomes, dict), f"the process ended with {outcomes}"
    for outcome in outcomes.values():
        assert not outcome.crash, outcome.crash
        assert outcome.seconds < 2, outcome
        assert outcome.megabytes < MEGABYTES, outcome
        assert not UNPRINTABLE.search(outcome.output), repr(outcome.output)
        assert re.search(says, outcome.output), outcome.output
        assert outcome.code == code, outcome.output


@pytest.mark.parametrize("name", SERVERS)
def test_a_hostile_server_is_left_in_time(name: str) -> None:
    backend, says, code = SERVERS[name]
    with FaultyServer(backend) as server:
        check(visit(f"{server.url}/c", ("verify", "inspect", "read"), PATIENCE), says, code)


def test_a_server_that_answers_200_to_everything_has_no_documents_without_end(base: Path) -> None:
    """Numbered documents are counted by asking for the next one."""
    files, probe = from_folder(base), (base / "probes/1.json").read_bytes()

    def answer(request: Any, behavior: Behavior) -> Answer:
        found = files(request, behavior)
        return Answer(200, {}, probe) if found.status == 404 else found

    with FaultyServer(answer) as server:
        outcomes = visit(server.url, ("read",), PATIENCE)
    assert isinstance(outcomes, dict), outcomes
    assert not outcomes["read"].crash, outcomes["read"].crash
    assert outcomes["read"].code == 4, outcomes["read"]


@pytest.mark.parametrize("kind", ["short", "swapped"])
def test_a_server_that_sends_something_else_is_found(base: Path, tmp_path: Path, kind: str) -> None:
    """Half of a body is requested again; another body has another digest."""
    shutil.copytree(base, tmp_path / "cache")
    files = from_folder(tmp_path / "cache")

    def answer(request: Any, behavior: Behavior) -> Answer:
        found = files(request, behavior)
        if "/codes/c/" not in request.path or found.status != 200:
            return found
        assert isinstance(found.body, bytes)
        whole = found.body
        body = whole[:-1] + b"x" if kind == "swapped" else whole[: len(whole) // 2]
        return Answer(200, {"Content-Length": str(len(whole)), "Connection": "close"}, body)

    says, code = ("cut|connection", 3) if kind == "short" else ("damaged|another content", 4)
    with FaultyServer(answer) as server:
        check(visit(server.url, ("verify", "read"), PATIENCE), says, code)


URLS = {
    "file:///tmp/x#y": "fragment",
    "file:///tmp/x?y": "query",
    "s3://bucket/x#1": "fragment",
    "s3://bucket/x?versionId=1": "query",
    "s3://key:secret@bucket/x": "credentials",
    "s3://": "no bucket|bucket or host|without",
    "http://": "host|without|URL",
    "http://[::1": "URL",
    "ftp://host/x": "not supported",
    "javascript://x/y": "not supported",
    "http://host/x#y": "fragment",
    "http://host/\x1b[2Jx": "URL|path|character",
}


@pytest.mark.parametrize("url", URLS)
def test_a_url_that_means_two_things_is_refused(url: str) -> None:
    outcomes = visit(url, ("verify", "inspect", "read"), PATIENCE)
    check(outcomes, URLS[url], 2)
    assert isinstance(outcomes, dict)
    assert all("secret" not in outcome.output for outcome in outcomes.values())
