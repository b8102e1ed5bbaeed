"""SIGKILL to ``logitcache precompute`` with real images and a torch teacher, at random commits."""

from __future__ import annotations

import random
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


def kill_real_runs(folder: Path, count: int, seed: int) -> dict[str, Any]:
    """Kill a real run ``count`` times at random numbers of commits; compare with a whole one."""
    images = write_images(folder / "images", 20)
    teacher = write_teacher(folder / "teacher", classes=3)
    _start(folder / "whole", images, teacher).wait()
    expected, generator = snapshot(folder / "whole"), random.Random(seed)
    units = sum(1 for _ in (folder / "whole/commits").rglob("*.json"))
    moments, failures = [], []
    for number in range(count):
        cache = folder / f"killed-{number}"
        wanted = generator.randrange(1, units)
        process = _start(cache, images, teacher)
        moments.append(_kill(process, cache, wanted, generator.random() * 0.02))
        kept = committed(cache)
        again = _start(cache, images, teacher)
        _, err = again.communicate()
        after = committed(cache)
        if again.returncode != 0:
            failures.append([number, err])
        elif any(after[name] != stamp for name, stamp in kept.items()):
            failures.append([number, "a committed unit was rewritten"])
        elif snapshot(cache) != expected or not verify(cache).ok:
            failures.append([number, "differs"])
    return {"units": units, "kills": moments, "failures": failures}


def _start(cache: Path, images: Path, teacher: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "logitcache", "precompute", "--cache", str(cache)]
    command += ["--data", str(images), "--teacher", f"red=local-dir:{teacher}", "--views", "8"]
    command += ["--unit-rows", "16", "--batch-size", "4", "--device", "cpu"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def _kill(process: subprocess.Popen[str], cache: Path, wanted: int, delay: float) -> str:
    """Send SIGKILL once so many units are committed; say when that was."""
    while process.poll() is None:
        commits = sum(1 for _ in (cache / "commits").rglob("*.json"))
        if commits >= wanted:
            time.sleep(delay)
            process.kill()
            process.wait()
            assert process.returncode == -signal.SIGKILL, "it was faster"
            return f"after {commits} commits"
        time.sleep(0.001)
    raise AssertionError(process.communicate()[1])
