"""Workers of dask against plain processes, and against one process: the same work, the same cores.

Every side is the command line in processes of its own. A rate is taken from the times of commits,
so that starting up is left out of it; that has a row of its own.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from logitcache.networks.build import NetworkConfig, build_network, input_spec
from logitcache.training.export.export import export_network
from tests.benchmarks.measuring import Measurement
from tests.conftest import jpeg, shape_image

ROUNDS = 3
PER_CLASS, UNIT, VIEWS, SIDE = 256, 128, 4, 96


class Bench:
    """Images and a teacher, and runs over them.

    Args:
        folder: Folder of all files.
        per_class: Images of each of the three classes.
    """

    def __init__(self, folder: Path, per_class: int = PER_CLASS) -> None:
        self._folder, self._runs = folder, 0
        for name in ("a", "b", "c"):
            (folder / "images" / name).mkdir(parents=True)
            for index in range(per_class):
                content = jpeg(shape_image(index, (160, 120)))
                (folder / "images" / name / f"{index}.jpg").write_bytes(content)
        torch.manual_seed(0)
        network = build_network(NetworkConfig(model="resnet18"), 3)
        export_network(network, input_spec(network, SIDE), folder / "teacher")

    def start(self, *flags: str, threads: int) -> tuple[subprocess.Popen[bytes], Path]:
        """Begin a precompute with so many threads; return the process and its cache."""
        self._runs += 1
        cache = self._folder / f"cache-{self._runs}"
        command = [sys.executable, "-m", "logitcache", "precompute", "--cache", str(cache)]
        command += ["--data", str(self._folder / "images"), "--device", "cpu"]
        command += ["--teacher", f"t=local-dir:{self._folder / 'teacher'}", "--set"]
        command += ["min_accuracy=0", "--unit-rows", str(UNIT), "--batch-size", "32", *flags]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        quiet = subprocess.DEVNULL
        return subprocess.Popen(command, env=environment, stdout=quiet, stderr=quiet), cache


def rate(cache: Path, streams: int) -> float:
    """Return images/s between commits, of so many workers at a time.

    The first quarter of them is left out: by then every worker has begun.
    """
    stamps = sorted(path.stat().st_mtime for path in (cache / "commits/teachers/t").rglob("*.json"))
    stamps = stamps[len(stamps) // 4 :]
    return (len(stamps) - streams) * UNIT / (stamps[-1] - stamps[0])


def finish(*runs: tuple[subprocess.Popen[bytes], Path]) -> list[Path]:
    """Wait for runs; return their caches."""
    for process, _ in runs:
        assert process.wait() == 0, "a run failed"
    return [cache for _, cache in runs]


def two_against_two(bench: Bench) -> tuple[float, float]:
    """Return images/s of two dask workers, and of two plain processes with half the views each."""
    (ours,) = finish(
        bench.start("--workers", "2", "--threads", "1", "--views", str(VIEWS), threads=2)
    )
    half = ("--threads", "1", "--views", str(VIEWS // 2))
    theirs = finish(
        *(bench.start(*half, "--set", f"views.seed={seed}", threads=1) for seed in (0, 1))
    )
    return rate(ours, 2), sum(rate(cache, 1) for cache in theirs)


def one_against_one(bench: Bench) -> tuple[float, float, float]:
    """Return images/s of one dask worker and of one process, and what starting the worker takes."""
    views = ("--views", str(VIEWS))
    began = time.time()
    (ours,) = finish(bench.start("--workers", "1", *views, threads=2))
    first = min(path.stat().st_mtime for path in (ours / "commits/teachers").rglob("*.json"))
    again = time.time()
    (theirs,) = finish(bench.start(*views, threads=2))
    other = min(path.stat().st_mtime for path in (theirs / "commits/teachers").rglob("*.json"))
    return rate(ours, 1), rate(theirs, 1), (first - began) - (other - again)


def measure(rounds: int = ROUNDS) -> list[Measurement]:
    """Return both ratios, and the seconds that a cluster takes to start."""
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        pairs = [two_against_two(bench) for _ in range(rounds)]
        triples = [one_against_one(bench) for _ in range(rounds)]
    two = [ours / theirs for ours, theirs in pairs]
    one = [theirs / ours for ours, theirs, _ in triples]
    started = [seconds for _, _, seconds in triples]
    return [
        _row("2 dask workers against 2 plain processes", two, pairs, 0.92, at_most=False),
        _row("1 dask worker: time against one process", one, triples, 1.05, at_most=True),
        Measurement(
            "starting a cluster of 1 worker", statistics.median(started), "s", note="once a run"
        ),
    ]


def _row(
    name: str,
    ratios: list[float],
    rates: list[tuple[float, float]] | list[tuple[float, float, float]],
    target: float,
    *,
    at_most: bool,
) -> Measurement:
    ours, theirs = (statistics.median(row[column] for row in rates) for column in (0, 1))
    return Measurement(
        name,
        statistics.median(ratios),
        "x",
        min(ratios),
        max(ratios),
        target,
        at_most=at_most,
        note=f"{ours:.0f} against {theirs:.0f} images/s; lowest and highest of {len(ratios)}",
    )
