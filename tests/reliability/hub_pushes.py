"""Kill ``push`` to the Hugging Face Hub at random requests, with a reader, and push again.

A server that speaks the Hub's protocol stands for it. Every second push is an update of an earlier
revision, which has to stay readable.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from logitcache.cache.verify.integrity import verify
from logitcache.errors import CacheError
from logitcache.share.transfer import push
from tests.processes import forking
from tests.share.growing import build, contents, grow, same_contents
from tests.share.hub_server import FakeHub, use_hub, write_state

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["kill_hub_pushes"]

_URL, _ORIGIN = "hf://datasets/team/killed/v1", "killed-push"


class _Requests:
    """Requests of a child to a hub, which kills it at one of them."""

    def __init__(self, hub: FakeHub, kill_at: int | None) -> None:
        self.count = 0
        self._kill_at = kill_at
        self._pid: int | None = None
        self._started, self._lock = threading.Event(), threading.Lock()
        hub.watch = self._see

    def of(self, pid: int | None) -> None:
        """Set the process to kill."""
        self._pid = pid
        self._started.set()

    def _see(self, agent: str) -> None:
        if _ORIGIN not in agent:
            return
        self._started.wait()
        with self._lock:
            if self.count == self._kill_at and self._pid is not None:
                os.kill(self._pid, signal.SIGKILL)
            self.count += 1


def kill_hub_pushes(folder: Path, count: int, seed: int) -> dict[str, Any]:
    """Kill ``count`` pushes, each to a repository of its own; return what came of it."""
    young, grown = build(folder / "young"), grow(build(folder / "grown"))
    draw = random.Random(seed)
    failures: list[list[Any]] = []
    moments: list[int] = []
    requests_of: dict[str, int] = {}  # by kind, of a push that is not killed

    def push_once(kind: str, kill_at: int | None) -> int:
        before = [young] if kind == "update" else []
        with pytest.MonkeyPatch.context() as patch, FakeHub() as hub:
            hub.least_large = 100
            use_hub(patch, hub)
            for path in before:
                push(path, _URL)
            requests, wrong = _attempt(hub, grown, before, kill_at)
            wrong += _wrong_states(hub, folder / "state", [young, grown])
        failures.extend([kind, kill_at, what] for what in wrong)
        return requests

    for number in range(count):
        kind = ("first", "update")[number % 2]
        if kind not in requests_of:
            requests_of[kind] = push_once(kind, None)
        moments.append(draw.randrange(requests_of[kind]))
        push_once(kind, moments[-1])
    return {"kills": count, "requests": requests_of, "moments": moments, "failures": failures}


def _attempt(
    hub: FakeHub, grown: Path, before: list[Path], kill_at: int | None
) -> tuple[int, list[str]]:
    """Push once with a reader at work, and again to the end; return requests and what is wrong."""
    wrong = []
    allowed = [contents(path) for path in (*before, grown)]
    requests = _Requests(hub, kill_at)
    child = forking().Process(target=_push, args=(hub.url, grown))
    child.start()
    requests.of(child.pid)
    while child.is_alive():
        seen = _read()
        if seen is None and before:
            wrong.append("a reader finds no cache")
        if seen is not None and not any(same_contents(seen, one) for one in allowed):
            wrong.append("a reader finds neither revision")
        time.sleep(0.02)  # for the server, which is in this process, too
    child.join()
    if child.exitcode != (0 if kill_at is None else -signal.SIGKILL):
        wrong.append(f"the push ended with {child.exitcode}")
    sent = len(hub.uploads)
    push(grown, _URL)
    if set(hub.uploads[:sent]) & set(hub.uploads[sent:]):
        wrong.append("what the hub had was sent again")
    found = _read()
    if found is None or not same_contents(found, allowed[-1]) or not verify(_URL).ok:
        wrong.append("the copy differs")
    return requests.count, wrong


def _read() -> Any:
    try:
        return contents(_URL)
    except CacheError:
        return None


def _push(url: str, cache: Path) -> None:
    """Push in a process of its own, in commits of a few objects."""
    patch = pytest.MonkeyPatch()  # never undone: this process ends
    patch.setattr("huggingface_hub.constants.HF_HUB_USER_AGENT_ORIGIN", _ORIGIN)
    patch.setattr("logitcache.cache.store.hub._MOST_OBJECTS", 6)
    use_hub(patch, url)
    push(cache, _URL)


def _wrong_states(hub: FakeHub, folder: Path, revisions: list[Path]) -> list[str]:
    """Return after which commits there was another cache than these, if one at all."""
    wrong = []
    (repository,) = hub.repositories.values()
    for number, state in enumerate(repository.states):
        write_state(state, folder)
        if (folder / "zarr.json").exists():
            found = contents(folder)
            if not any(same_contents(found, contents(path)) for path in revisions):
                wrong.append(f"commit {number} has another cache")
        shutil.rmtree(folder)
    return wrong
