"""SIGKILL to ``logitcache precompute`` as process 1 of a PID namespace, as in a container.

The resumed run is process 1 as well: the claims that were left name its own number.
"""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

from logitcache.cache.verify.integrity import verify
from tests.conftest import write_images, write_teacher
from tests.reliability.kills import committed, snapshot

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["kill_process_1"]

_UNSHARE = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child=KILL"]


def kill_process_1(folder: Path, count: int, seed: int) -> dict[str, Any]:
    """Kill ``count`` runs at random moments, resume each, and compare with an undisturbed run."""
    start = _start_of_namespaces()
    if start is None:
        return {"not run": "unshare --pid is not permitted, or not installed"}
    images = write_images(folder / "images", 11)
    teacher = write_teacher(folder / "teacher", classes=3)
    begun = time.monotonic()
    whole = _run(start, folder / "whole", images, teacher)
    _, err = whole.communicate()
    assert whole.returncode == 0, err
    seconds = time.monotonic() - begun
    units = _commits(folder / "whole")
    expected, generator = _whole_files(folder / "whole"), random.Random(seed)
    moments: list[int] = []
    claims = 0
    slowest = 0.0
    failures: list[list[Any]] = []
    for number in range(count):
        cache = folder / f"killed-{number}"
        process = _run(start, cache, images, teacher)
        moments.append(_kill(process, cache, generator.randrange(units), generator.random() * 0.1))
        kept = committed(cache)
        claims += sum(1 for _ in cache.glob("claims/*.json"))
        begun = time.monotonic()
        _, err = (again := _run(start, cache, images, teacher)).communicate()
        slowest = max(slowest, time.monotonic() - begun)
        after = committed(cache)
        if again.returncode != 0:
            failures.append([number, err])
        elif any(after[name] != stamp for name, stamp in kept.items()):
            failures.append([number, "a committed unit was rewritten"])
        elif _whole_files(cache) != expected or not verify(cache).ok:
            failures.append([number, "differs"])
        elif "waiting for" in err:
            failures.append([number, "it waited for a claim"])
    return {
        "units": units,
        "kills": count,
        "after_commits": moments,
        "claims_left_behind": claims,
        "undisturbed_run_seconds": round(seconds, 1),
        "slowest_resumed_run_seconds": round(slowest, 1),
        "failures": failures,
    }


def _whole_files(cache: Path) -> dict[str, bytes]:
    """Return all files but halves: those of another namespace are removed an hour later."""
    return {n: content for n, content in snapshot(cache).items() if not n.endswith(".partial")}


def _start_of_namespaces() -> list[str] | None:
    """Return what makes a command process 1, None where that is not possible here."""
    if shutil.which("unshare") is None:
        return None
    for start in (_UNSHARE, [*_UNSHARE, "--user", "--map-root-user"]):
        if subprocess.run([*start, "true"], capture_output=True).returncode == 0:
            return start
    return None


def _run(start: list[str], cache: Path, images: Path, teacher: Path) -> subprocess.Popen[str]:
    command = [*start, sys.executable, "-m", "logitcache", "precompute", "--cache", str(cache)]
    command += ["--data", str(images), "--teacher", f"red=local-dir:{teacher}", "--views", "4"]
    command += ["--unit-rows", "16", "--batch-size", "4", "--device", "cpu"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def _kill(process: subprocess.Popen[str], cache: Path, wanted: int, delay: float) -> int:
    """Send SIGKILL a moment after so many units are committed; return how many there are then."""
    while not (cache / "claims").exists() or _commits(cache) < wanted:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.001)
    time.sleep(delay)
    process.kill()  # and with it, by --kill-child, process 1 of the namespace
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "it was faster"
    return _commits(cache)


def _commits(cache: Path) -> int:
    return sum(1 for _ in (cache / "commits").rglob("*.json"))
