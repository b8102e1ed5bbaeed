"""SIGKILL to one of two dask workers with real images and torch teachers, at random moments."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import torch

from logitcache.cache.read.reader import open_cache
from logitcache.cache.verify.integrity import verify
from logitcache.precompute.build import build_cache
from logitcache.precompute.cluster.cluster import local_cluster
from logitcache.precompute.config import PrecomputeConfig
from tests.conftest import write_images, write_teacher
from tests.reliability.kills import same_arrays, snapshot

if TYPE_CHECKING:
    from pathlib import Path

_PER_CLASS = 40


def kill_workers(folder: Path, count: int, seed: int) -> dict[str, Any]:
    """Kill ``count`` times, each time in a run of its own; compare with a single process."""
    values: dict[str, Any] = {
        "data": str(write_images(folder / "images", _PER_CLASS)),
        "teachers": {
            "cnn": {"model": f"local-dir:{_teacher(folder / 'cnn', 'cnn')}"},
            "red": {"model": f"local-dir:{_teacher(folder / 'red', 'rednet')}"},
        },
        "views": {"count": 4},
        "unit_rows": 16,
        "batch_size": 4,
        "device": "cpu",
        "threads": 1,
        "min_accuracy": 0,
    }
    torch.set_num_threads(1)  # as the workers: the number of threads changes the last bits
    whole, generator = folder / "whole", random.Random(seed)
    build_cache(PrecomputeConfig.parse({**values, "cache": str(whole)}, ""))
    expected = snapshot(whole)
    units = sum(1 for _ in (whole / "commits").rglob("*.json"))
    moments, lost, failures = [], 0, []
    with local_cluster(2, gpus=False) as client:
        values["scheduler"] = client.scheduler.address  # type: ignore[union-attr]  # it is connected
        for number in range(count):
            client.wait_for_workers(2, timeout=120)
            pids = sorted(client.run(os.getpid).values())
            cache = folder / f"killed-{number}"
            wanted, delay = generator.randrange(1, units), generator.random() * 0.05
            killer = _Killer(cache, generator.choice(pids), wanted, delay)
            killer.start()
            summary = build_cache(PrecomputeConfig.parse({**values, "cache": str(cache)}, ""))
            killer.join()
            moments.append(killer.commits)
            lost += any("was lost" in note for note in summary.notes)
            failures += [[number, problem] for problem in _problems(cache, whole, expected)]
    return {
        "units": units,
        "kills": len(moments),
        "after_commits": moments,
        "in_the_middle_of_an_item": lost,
        "failures": failures,
    }


def _teacher(folder: Path, model: str) -> Path:
    return write_teacher(folder, classes=3, model=model)


def _problems(cache: Path, whole: Path, expected: dict[str, bytes]) -> list[str]:
    found = []
    if not same_arrays(open_cache(cache), open_cache(whole)):
        found.append("arrays differ")
    got = {name: content for name, content in snapshot(cache).items() if "claims/" not in name}
    partial = [name for name in got if name.endswith(".partial")]
    if {name: content for name, content in got.items() if name not in partial} != expected:
        found.append("bytes differ")
    if not verify(cache).ok:
        found.append("verify finds faults")
    return found


class _Killer(threading.Thread):
    """Sends SIGKILL to a worker a moment after so many units are committed."""

    def __init__(self, cache: Path, pid: int, wanted: int, delay: float) -> None:
        super().__init__(daemon=True)
        self._cache, self._pid, self._wanted, self._delay = cache, pid, wanted, delay
        self.commits = 0

    def run(self) -> None:
        while self.commits < self._wanted:
            time.sleep(0.005)
            self.commits = sum(1 for _ in (self._cache / "commits").rglob("*.json"))
        time.sleep(self._delay)
        os.kill(self._pid, signal.SIGKILL)
