"""Kill ``pull`` from an S3 server and from a server that stands for the Hub, and pull again.

Half of the kills come at a request of the pull, the others before or after one of its writes. Every
second pair of copies has an earlier revision before, which has to stay readable.
"""

from __future__ import annotations

import logging
import os
import random
import re
import signal
import threading
import time
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import boto3
import pytest

from logitcache.cache.verify.integrity import verify
from logitcache.share.transfer import pull, push
from tests.processes import forking
from tests.reliability.transfers import Reader
from tests.remote.buckets import CREDENTIALS
from tests.remote.servers import FaultyServer, from_upstream
from tests.share.growing import (
    build,
    contents,
    files,
    grow,
    note_and_die,
    same_contents,
)
from tests.share.hub_server import FakeHub, use_hub

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.remote.servers import Answer, Behavior

__all__ = ["kill_hub_pulls", "kill_pulls"]

_BUCKET, _REPOSITORY = "s3://pulls/cache", "hf://datasets/team/pulled/v1"
_SHARD = re.compile(r"((?:teachers|samples|views)/.*/c/[\d/]+)$")
_KINDS = ("request", "write")
_LATE_SECONDS = 0.2  # a server may read a request after its client was killed


def kill_pulls(folder: Path, count: int, seed: int) -> dict[str, Any]:
    """Kill ``count`` pulls from an S3 server; return what came of it."""
    with _bucket() as source:
        return _kill_all(source, folder, count, seed)


def kill_hub_pulls(folder: Path, count: int, seed: int) -> dict[str, Any]:
    """Kill ``count`` pulls from the server that stands for the Hub; return what came of it."""
    with _repository() as source:
        return _kill_all(source, folder, count, seed)


class _Source:
    """A cache on a server, whose requests are counted; one of them may kill its client.

    Args:
        url: The cache.
        server: URL of the server.

    Attributes:
        shards: Keys of the shards that were requested, in order.
        requests: Number of all requests.
    """

    def __init__(self, url: str, server: str) -> None:
        self.url, self.server = url, server
        self._lock = threading.Lock()
        self.start(None)
        self.kill(0)

    def start(self, kill_at: int | None) -> None:
        """Count from zero; the request of this number kills its client."""
        self.shards: list[str] = []
        self.requests = 0
        self._kill_at, self._pid = kill_at, 0
        self._named = threading.Event()

    def kill(self, pid: int) -> None:
        """Set the client."""
        self._pid = pid
        self._named.set()

    def see(self, method: str, path: str) -> None:
        """Note a request, before it is answered."""
        self._named.wait()
        with self._lock:
            if self.requests == self._kill_at:
                os.kill(self._pid, signal.SIGKILL)
            self.requests += 1
            shard = _SHARD.search(path.partition("?")[0])
            if method == "GET" and shard is not None:
                self.shards.append(shard[1])


@contextmanager
def _bucket() -> Iterator[_Source]:
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel("ERROR")
    store = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    store.start()
    answer = from_upstream(store.get_host_and_port())

    def noted(request: Any, behavior: Behavior) -> Answer:
        source.see(request.command, request.path)
        return answer(request, behavior)

    with FaultyServer(noted) as server, pytest.MonkeyPatch.context() as patch:
        source = _Source(_BUCKET, server.url)
        _use(patch, source)
        boto3.client("s3", endpoint_url=server.url).create_bucket(Bucket="pulls")
        yield source
    store.stop()


@contextmanager
def _repository() -> Iterator[_Source]:
    with FakeHub() as hub, pytest.MonkeyPatch.context() as patch:
        source = _Source(_REPOSITORY, hub.url)
        _use(patch, source)
        hub.watch_path = source.see
        yield source


def _use(patch: pytest.MonkeyPatch, source: _Source | tuple[str, str]) -> None:
    """Make the clients of this process use the server of a source, or of its URLs."""
    url, server = source if isinstance(source, tuple) else (source.url, source.server)
    if url == _BUCKET:
        for name, value in {"AWS_ENDPOINT_URL": server, **CREDENTIALS}.items():
            patch.setenv(name, value)
    else:
        use_hub(patch, server)


def _kill_all(source: _Source, folder: Path, count: int, seed: int) -> dict[str, Any]:
    young, grown = build(folder / "young"), grow(build(folder / "grown"))
    push(grown, source.url)
    expected = {key for key in files(grown) if _SHARD.search(key)}
    draw = random.Random(seed)
    moments_of: dict[str, dict[str, int]] = {}  # of pulls that are not killed
    kills: list[dict[str, Any]] = []
    failures: list[Any] = []
    for number in range(count):
        kind, update = _KINDS[number % 2], number // 2 % 2 == 1
        name = "update" if update else "first"
        if name not in moments_of:
            whole = _Pull(source, folder / name, young if update else None, grown)
            moments_of[name] = whole.uninterrupted()
        moment = draw.randrange(moments_of[name][kind])
        one = _Pull(source, folder / str(number), young if update else None, grown)
        found = one.killed(kind, moment, expected)
        kills.append({"copy": name, "at": kind, "moment": moment, **found})
        failures += [[number, name, kind, moment, what] for what in one.wrong]
    return {
        "kills": count,
        "moments": moments_of,
        "shards": len(expected),
        "each": kills,
        "most_shards_requested_twice": max(one["twice"] for one in kills),
        "failures": failures,
    }


class _Pull:
    """A pull to a place of its own.

    Args:
        source: What is pulled.
        folder: Where to work.
        before: The revision that the place has; None for an empty one.
        grown: The revision that is pulled.

    Attributes:
        wrong: What was found that should not be.
    """

    def __init__(self, source: _Source, folder: Path, before: Path | None, grown: Path) -> None:
        self._source, self._folder, self._grown = source, folder, grown
        self._copy = folder / "copy"
        self.wrong: list[str] = []
        if before is not None:
            push(before, self._copy)
        folder.mkdir(exist_ok=True)
        self._reader = Reader(str(self._copy), [] if before is None else [before], grown)

    def uninterrupted(self) -> dict[str, int]:
        """Pull without a kill; return the numbers of moments by kind."""
        _, writes = self._once({}, "whole")
        return {"request": self._source.requests, "write": 2 * writes}

    def killed(self, kind: str, moment: int, expected: set[str]) -> dict[str, int]:
        """Pull until the kill, and again; return the numbers of shards."""
        code, _ = self._once({kind: moment}, "first")
        if code != -signal.SIGKILL:
            self.wrong.append(f"the pull ended with {code} instead of being killed")
        time.sleep(_LATE_SECONDS)
        first, complete = set(self._source.shards), self._complete(expected)
        code, _ = self._once({}, "second")
        second = self._source.shards
        if code:
            self.wrong.append(f"the second pull ended with {code}")
        if complete & set(second):
            self.wrong.append(f"complete and requested again: {sorted(complete & set(second))[:3]}")
        if sorted(second) != sorted(expected - complete):
            others = Counter(second) - Counter(expected - complete)
            self.wrong.append(f"other shards than the missing ones were requested: {others}")
        if not same_contents(contents(self._copy), contents(self._grown)):
            self.wrong.append("the copy differs")
        if self._complete(expected) != expected or not verify(self._copy).ok:
            self.wrong.append("the copy is damaged")
        self.wrong += dict.fromkeys(self._reader.wrong)
        return {
            "complete": len(complete),
            "missing": len(expected - complete),
            "twice": len(first & set(second)),
            "reads": self._reader.count,
        }

    def _once(self, kill_at: dict[str, int], name: str) -> tuple[int | None, int]:
        """Pull in a process of its own; return its exit code and the number of its writes."""
        log = self._folder / f"{name}.log"
        self._source.start(kill_at.get("request"))
        place = (self._source.url, self._source.server)
        work = (place, self._copy, log, kill_at.get("write"))
        child = forking().Process(target=_pull, args=work)
        child.start()
        self._source.kill(child.pid)
        while child.is_alive():
            self._reader.read()
            time.sleep(0.01)  # for the server, which is in this process, too
        child.join()
        self._reader.read()  # what the kill has left
        return child.exitcode, len(log.read_text().splitlines()) if log.exists() else 0

    def _complete(self, expected: set[str]) -> set[str]:
        """Return the shards that are equal to those of the source."""
        ours, theirs = files(self._copy) if self._copy.exists() else {}, files(self._grown)
        return {key for key in expected if ours.get(key) == theirs[key]}


def _pull(source: tuple[str, str], copy: Path, log: Path, kill_at: int | None) -> None:
    """Pull in a process of its own."""
    _use(pytest.MonkeyPatch(), source)  # never undone: this process ends
    note_and_die(log, kill_at)
    pull(source[0], copy)
