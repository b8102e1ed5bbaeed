"""Kill a command that derives a cache at random moments, re-run it, compare with one run.

``python -m tests.share.kills slice|merge FOLDER --count 20`` prints one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from logitcache.cache.verify.integrity import verify
from logitcache.cache.write.exclude import withdraw_images
from logitcache.share.merging import merge_caches
from logitcache.share.row_selection import RowSelection
from logitcache.share.slicing import slice_cache
from tests.processes import forking
from tests.share.caches import MIXED, VIEWS, Part, build, files_of, keys_of

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["COMMANDS", "Moments", "kill_command"]


class Moments:
    """Moments of the work on files of this process, which dies at one of them."""

    def __init__(self, kill_at: int | None) -> None:
        self._kill_at = kill_at
        self.seen: list[str] = []

    def install(self) -> None:
        """Put a moment before everything that changes files; never undone: this process ends."""
        patch = pytest.MonkeyPatch()
        for name in ("fsync", "replace", "rename", "unlink", "rmdir", "mkdir"):
            patch.setattr(f"os.{name}", self._before(name, getattr(os, name)))

    def _before(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **options: Any) -> Any:
            if len(self.seen) == self._kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            self.seen.append(name)
            return function(*args, **options)

        return called


def make_sources(folder: Path) -> None:
    """Write the caches that the commands read."""
    views = [*list(VIEWS)[:1], *MIXED]
    build(folder / "whole", Part([keys_of(40), keys_of(20, 40)], views=views, taps=["a"]))
    for name, keys in (("odd", keys_of(50)[1::2]), ("even", keys_of(50)[::2])):
        build(folder / name, Part([keys], views=views[:1], taps=["a"]))
    for name in ("whole", "odd"):
        withdraw_images(folder / name, [keys_of(50)[1], keys_of(50)[3]], "excluded")


def run_slice(folder: Path, out: Path) -> None:
    """Copy some units as bytes, and encode others again, some of them with fewer classes."""
    rows = RowSelection(share=(0, 0.8))
    slice_cache(folder / "whole", out, views=["0"], rows=rows, top_k=2)


def run_merge(folder: Path, out: Path) -> None:
    """Gather rows of two caches, and copy a table."""
    merge_caches([folder / "odd", folder / "even"], out)


COMMANDS: dict[str, Callable[[Path, Path], None]] = {"slice": run_slice, "merge": run_merge}


def kill_command(command: str, folder: Path, count: int, seed: int) -> dict[str, Any]:
    """Kill a command ``count`` times, each time with a destination of its own.

    Returns:
        Numbers of moments and kills, and what differs from a run that is not killed.
    """
    sources = folder / "sources"
    make_sources(sources)
    before = files_of(sources)
    status, moments = _in_a_child(command, sources, folder / "uninterrupted", None)
    assert status == 0, "the uninterrupted run failed"
    expected = files_of(folder / "uninterrupted")
    failures: list[list[Any]] = []
    kinds: Counter[str] = Counter()
    for kill_at in sorted(random.Random(seed).sample(range(len(moments)), count)):
        out = folder / f"killed-{kill_at}"
        status, _ = _in_a_child(command, sources, out, kill_at)
        if status != -signal.SIGKILL:
            failures.append([kill_at, "not killed", status])
            continue
        kinds[moments[kill_at]] += 1
        status, _ = _in_a_child(command, sources, out, None)
        found = files_of(out)
        differing = [n for n in found.keys() | expected.keys() if found.get(n) != expected.get(n)]
        report = verify(out) if status == 0 else None
        if status or differing or report is None or not report.ok or report.orphans:
            failures.append([kill_at, moments[kill_at], status, sorted(differing)[:5]])
    if files_of(sources) != before:
        failures.append(["the sources have changed"])
    return {
        "command": command,
        "moments": len(moments),
        "kills": sum(kinds.values()),
        "kills_by_kind": dict(sorted(kinds.items())),
        "failures": failures,
    }


def _in_a_child(
    command: str, sources: Path, out: Path, kill_at: int | None
) -> tuple[int, list[str]]:
    """Run a command in a process of its own; return its exit code and its moments."""
    log = out.with_name(f"{out.name}.log")
    child = forking().Process(target=_child, args=(command, sources, out, kill_at, log))
    child.start()
    child.join()
    assert child.exitcode is not None
    return child.exitcode, json.loads(log.read_text()) if log.exists() else []


def _child(command: str, sources: Path, out: Path, kill_at: int | None, log: Path) -> None:
    moments = Moments(kill_at)
    moments.install()
    COMMANDS[command](sources, out)
    seen = list(moments.seen)
    log.write_text(json.dumps(seen))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.share.kills")
    parser.add_argument("command", choices=sorted(COMMANDS))
    parser.add_argument("folder", type=Path, help="an empty folder to work in")
    parser.add_argument("--count", type=int, default=20, help="how many kills")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    found = kill_command(arguments.command, arguments.folder, arguments.count, arguments.seed)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
