"""Students of three classes from a teacher of ten, on images of all ten: treatments of the rest.

A ResNet-10-t with all ten of scikit-learn's digits is the teacher. Its cache has images of all ten;
students know three of them, 3, 5 and 8, and learn from the teacher alone, without a loss on labels.
Seven of ten images show something else: the case that ``outside: weight`` is meant for. The other
case, where all images show classes of the student, is :mod:`tests.benchmarks.class_lens`.::

    python -m tests.benchmarks.class_outside runs/class_outside
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from logitcache.precompute.build import build_cache
from logitcache.precompute.config import PrecomputeConfig
from logitcache.training.config import TrainConfig
from logitcache.training.loop import train_student

CLASSES, TEACHER_EPOCHS, EPOCHS, SEEDS, IMAGES = ("3", "5", "8"), 6, 10, 6, 1347
ARMS = ("auto", "weight", "uniform", "renorm")
STUDENT = {
    "model": "resnet10t",
    "size": 16,
    "kwargs": {"stem_width": 8, "channels": [8, 16, 32, 32]},
}


def trained(out: Path, **values: Any) -> float:
    """Train a student, or the teacher, and return its accuracy in percent."""
    given = {"out": str(out), "student": STUDENT, "batch_size": 32, "optimizer": {"lr": 4e-3}}
    given |= {
        "data": {"name": "digits", "split": "train", "limit": IMAGES},
        "val": {"name": "digits", "split": "val"},
        **values,
    }
    result = train_student(TrainConfig.parse(given, "train"), resume=True)
    assert result.evaluation is not None
    return 100 * result.evaluation.score


def make_cache(out: Path) -> None:
    accuracy = trained(out / "teacher", epochs=TEACHER_EPOCHS, eval_every=TEACHER_EPOCHS)
    print(f"teacher: {accuracy:.1f} %")
    values = {
        "cache": str(out / "cache"),
        "data": {"name": "digits", "split": "train", "limit": IMAGES},
        "teachers": {"ten": {"model": f"local-dir:{out / 'teacher/export'}"}},
        "views": {"count": 2, "scale": [0.6, 1.0], "hflip": 0.0},
        "min_accuracy": 0,
    }
    print(build_cache(PrecomputeConfig.parse(values, "precompute")).accuracy)


def compare(out: Path) -> None:
    """Train the students and print a table."""
    found: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for seed in range(SEEDS):
        for arm in ARMS:
            top1 = trained(
                out / f"{arm}-{seed}",
                cache=str(out / "cache"),
                class_map={"ten": {name: [name] for name in CLASSES}},
                objectives=[{"soft": {"outside": arm}}],
                epochs=EPOCHS,
                eval_every=EPOCHS,
                seed=seed,
            )
            found[arm].append(top1)
            print(f"seed {seed}, {arm}: {top1:.2f}", flush=True)
    for arm, values in found.items():
        paired = [value - other for value, other in zip(values, found["weight"], strict=True)]
        shown = ", ".join(f"{value:.1f}" for value in values)
        print(
            f"| {arm} | {shown} | {mean(values):.1f} | {mean(paired):+.2f}, {stdev(paired):.2f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of the caches and the runs")
    arguments = parser.parse_args()
    started = time.time()
    make_cache(arguments.out)
    compare(arguments.out)
    print(f"{time.time() - started:.0f} s, load {os.getloadavg()}")


if __name__ == "__main__":
    main()
