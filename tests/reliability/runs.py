"""Kill ``train`` and ``run`` at random moments of their work on files, resume, compare the bits.

A fork server imports torch once; every run is a process of its own.
"""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import os
import random
import signal
from collections import Counter
from typing import TYPE_CHECKING, Any

from logitcache.cache.verify.integrity import verify
from tests.conftest import write_images
from tests.reliability.files import FileMoments
from tests.reliability.kills import snapshot

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["kill_and_compare", "kill_pipelines", "kill_trainings", "outcome"]

_OUT = "run"
_CLOCKED = {"seconds", "data_wait", "images_per_second", "out"}
_NETWORK = {
    "model": "resnet10t",
    "kwargs": {"channels": [16] * 4, "stem_width": 16},
    "size": 32,
}
_TRAIN = {
    "student": _NETWORK,
    "batch_size": 9,
    "epochs": 3,
    "device": "cpu",
    "threads": 1,
    "ema": 0.9,
}


def kill_trainings(folder: Path, count: int, seed: int) -> dict[str, Any]:
    """Kill a training ``count`` times, each time in a folder of its own."""
    return kill_and_compare(folder, _images(folder), count, seed, _train, outcome)


def kill_pipelines(folder: Path, count: int, seed: int) -> dict[str, Any]:
    """Kill a pipeline ``count`` times: a teacher, its cache, a student."""

    def found(out: Path) -> dict[str, Any]:
        out = out / _OUT
        cache = {n: c for n, c in snapshot(out / "cache").items() if not n.endswith(".partial")}
        return {
            **{f"teacher, {n}": value for n, value in outcome(out / "teacher").items()},
            **{f"student, {n}": value for n, value in outcome(out / "student").items()},
            "cache": cache,
            "verify": verify(out / "cache").faults,
        }

    return kill_and_compare(folder, _images(folder), count, seed, _run_pipeline, found)


def _images(folder: Path) -> Path:
    return write_images(folder / "images", 6)


def kill_and_compare(
    folder: Path,
    given: Path,
    count: int,
    seed: int,
    work: Callable[[Path, Path], object],
    found: Callable[[Path], dict[str, Any]],
) -> dict[str, Any]:
    """Kill something ``count`` times at random moments, and resume it.

    Args:
        folder: Folder for the output of every run.
        given: What the runs are given, such as a folder of images.
        count: How many kills.
        seed: Random seed of the moments.
        work: Called in a process of its own with an output folder and what is given; resumes.
        found: Returns what came of a run by its output folder, to compare.
    """
    status, log = _in_a_child(work, folder / "whole", given, None)
    assert status == 0, "the uninterrupted run failed"
    expected = found(folder / "whole")
    moments: list[str] = log["moments"]
    kinds: Counter[str] = Counter()
    failures: list[list[Any]] = []
    for kill_at in _drawn(moments, count, seed):
        out = folder / f"killed-{kill_at}"
        status, died = _in_a_child(work, out, given, kill_at)
        if status != -signal.SIGKILL:
            failures.append([kill_at, "not killed", status])
            continue
        kinds[died["kind"]] += 1
        status, _ = _in_a_child(work, out, given, None)
        if status != 0:
            failures.append([kill_at, died["kind"], "not resumed"])
            continue
        after = found(out)
        differing = [name for name, value in expected.items() if after[name] != value]
        if differing:
            failures.append([kill_at, died["kind"], f"differs: {', '.join(differing)}"])
    return {
        "moments": len(moments),
        "moments_by_kind": dict(sorted(Counter(moments).items())),
        "kills": sum(kinds.values()),
        "kills_by_kind": dict(sorted(kinds.items())),
        "failures": failures,
    }


def _drawn(moments: list[str], count: int, seed: int) -> list[int]:
    """Draw moments: an equal share of each kind where there are as many, the rest freely."""
    generator = random.Random(seed)
    kinds = sorted(set(moments))
    drawn: set[int] = set()
    for kind in kinds:
        of_kind = [number for number, found in enumerate(moments) if found == kind]
        drawn |= set(generator.sample(of_kind, min(len(of_kind), count // len(kinds))))
    rest = [number for number in range(len(moments)) if number not in drawn]
    return sorted(drawn | set(generator.sample(rest, count - len(drawn))))


def outcome(out: Path) -> dict[str, Any]:
    """Return what came of a training, without what depends on clocks."""
    result = json.loads((out / "result.json").read_text())
    events = [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()]
    return {
        "weights": (out / "export" / "model.safetensors").read_bytes(),
        "export": json.loads((out / "export" / "config.json").read_text()),
        "result": {name: value for name, value in result.items() if name not in _CLOCKED},
        "journal": [{n: v for n, v in event.items() if n not in _CLOCKED} for event in events],
        "rows of the table": len((out / "journal.csv").read_text().splitlines()),
        "checkpoints": sorted(path.name for path in (out / "checkpoints").iterdir()),
    }


def _in_a_child(
    work: Callable[[Path, Path], object], out: Path, given: Path, kill_at: int | None
) -> tuple[int, dict[str, Any]]:
    """Run something in a process of its own, and return its exit code and what it noted."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["logitcache.training.loop", "logitcache.precompute.build", "logitcache.cli.run"]
    )
    log = out.with_name(f"{out.name}.log")
    log.unlink(missing_ok=True)
    child = context.Process(target=_child, args=(work, out, given, kill_at, log))
    child.start()
    child.join()
    assert child.exitcode is not None
    return child.exitcode, json.loads(log.read_text()) if log.exists() else {}


def _child(
    work: Callable[[Path, Path], object], out: Path, given: Path, kill_at: int | None, log: Path
) -> None:
    import torch

    torch.set_num_threads(1)
    moments = FileMoments(log, kill_at)
    moments.install()
    work(out, given)
    moments.note()


def _train(out: Path, images: Path) -> None:
    from logitcache.training.config import TrainConfig
    from logitcache.training.loop import train_student

    values = {**_TRAIN, "out": str(out), "data": str(images), "val": str(images)}
    train_student(TrainConfig.parse(values, ""), resume=True)


def _run_pipeline(out: Path, images: Path) -> None:
    from logitcache.cli.interrupt import StopRequest
    from logitcache.cli.stages import stage_runner
    from logitcache.pipeline.config import PipelineConfig
    from logitcache.pipeline.run import Pipeline

    precompute = {
        "teachers": {"cnn": {"model": "stage:teacher"}},
        "views": {"count": 3},
        "unit_rows": 16,
        "batch_size": 4,
        "device": "cpu",
        "threads": 1,
        "min_accuracy": 0,
    }
    # a cache keeps the name of its teacher's file, which is to be the same in every folder
    out.mkdir(exist_ok=True)
    os.chdir(out)
    values = {
        "name": "killed",
        "out": _OUT,
        "data": str(images),
        "train": _TRAIN,
        "stages": [
            {"name": "teacher", "train": {"epochs": 2}},
            {"name": "cache", "precompute": precompute},
            {"name": "student", "train": {"cache": "stage:cache", "objectives": ["soft"]}},
        ],
    }
    pipeline = Pipeline(PipelineConfig.parse(values, "killed"))
    with StopRequest() as stop, contextlib.redirect_stderr(io.StringIO()):
        pipeline.run(stage_runner(stop))
