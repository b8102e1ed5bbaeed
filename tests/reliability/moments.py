"""A precompute that can be killed at any of its moments: encode, store write, commit, seal.

Three commands in a row, as a user would type them: a build of 20 units and more, a top-up with new
images, a further teacher. Renderer and teachers are the null ones, so no torch is imported, and
every moment has a number: the same one in every run.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from logitcache.cache.store.local import LocalLocation
from logitcache.encoding.sparse import SparseEncoding
from tests.precompute import null

if TYPE_CHECKING:
    from collections.abc import Callable

STAGES = ("build", "top-up", "added teacher")
ROWS, MORE = 300, 70
_KINDS = {"/c/": "store write", "commits/": "commit", "ledger/": "seal", "revisions/": "seal"}


def run_stage(path: Path, stage: str, answers: null.NullTeachers) -> None:
    """Run one command; a command that was killed is simply run again."""
    teachers = {"coarse": null.UNIT, "fine": null.UNIT // 4}
    if stage == "added teacher":
        teachers["late"] = null.UNIT
    more = 0 if stage == "build" else MORE
    null.run(path, teachers, rows=ROWS, more=more, answers=answers)


def in_a_child(path: Path, first_stage: str, kill_at: int | None) -> tuple[int, Path]:
    """Run the commands from one stage on in a fork, kill it at a moment.

    Returns:
        The status of the child, and the file in which it noted its moments.
    """
    log = path.with_suffix(".log")
    child = os.fork()
    if child == 0:
        _run(path, first_stage, kill_at, log)
    _, status = os.waitpid(child, 0)
    return status, log


def _run(path: Path, first_stage: str, kill_at: int | None, log: Path) -> None:
    recorder = _Recorder(kill_at, log)
    recorder.install()
    answers = null.NullTeachers()
    for stage in STAGES[STAGES.index(first_stage) :]:
        recorder.stage = stage
        run_stage(path, stage, answers)
    recorder.note(answers)
    os._exit(0)


class _Recorder:
    """Counts moments, and kills this process at one of them."""

    def __init__(self, kill_at: int | None, log: Path) -> None:
        self.stage = ""
        self._kill_at, self._log = kill_at, log
        self._moments: list[str] = []
        self._kind = ""

    def install(self) -> None:
        """Put moments around every encode and into every write."""
        encode, write = SparseEncoding.encode, LocalLocation.write
        fsync, replace = os.fsync, Path.replace

        def encoding(this: SparseEncoding, log_probs: Any) -> Any:
            self.moment("encode")
            return encode(this, log_probs)

        def writing(this: LocalLocation, key: str, content: bytes | memoryview) -> None:
            self._kind = next((kind for part, kind in _KINDS.items() if part in key), "declare")
            self.moment(f"{self._kind}, before")
            self.moment(f"{self._kind}, half written", lambda: _half(this, key, bytes(content)))
            write(this, key, content)

        def syncing(descriptor: int) -> None:
            self.moment(f"{self._kind}, at fsync")
            fsync(descriptor)

        def renaming(this: Path, target: Path) -> Path:
            self.moment(f"{self._kind}, before rename")
            renamed = replace(this, target)
            self.moment(f"{self._kind}, after rename")
            return renamed

        patch = pytest.MonkeyPatch()  # never undone: this process is about to die
        patch.setattr(SparseEncoding, "encode", encoding)
        patch.setattr(LocalLocation, "write", writing)
        patch.setattr(os, "fsync", syncing)
        patch.setattr(Path, "replace", renaming)

    def moment(self, what: str, before: Callable[[], None] | None = None) -> None:
        """Note a moment, or die at it."""
        if self._kill_at == len(self._moments):
            if before is not None:
                before()
            self._log.write_text(json.dumps({"stage": self.stage, "moment": what}))
            os.kill(os.getpid(), signal.SIGKILL)
        self._moments.append(f"{self.stage}: {what}")

    def note(self, answers: null.NullTeachers) -> None:
        """Leave behind what happened."""
        self._log.write_text(json.dumps({"moments": self._moments, "requested": answers.requested}))


def _half(location: LocalLocation, key: str, content: bytes) -> None:
    """Leave half of an object under the name of a file under way, as a real kill would."""
    folder = location.path(key).parent
    folder.mkdir(parents=True, exist_ok=True)
    host = os.uname().nodename
    name = "".join(c if c.isalnum() else "-" for c in host)[:40]
    partial = folder / f"{Path(key).name}.{name}_{os.getpid()}_half.partial"
    partial.write_bytes(content[: len(content) // 2])
