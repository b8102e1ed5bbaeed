"""Accuracy of students from original images, from packed ones, and from stored views.

::

    python -m tests.benchmarks.image_accuracy --train DIR --val DIR --out FOLDER
        [--images 5000] [--steps 400] [--seeds 3]

A teacher (ResNet-10 for 32 pixels) is trained with labels on some images of a folder of classes.
Then it is run on four views of them in three caches: without images, with packed ones, and with
stored views, all at 32 pixels, as JPEG of quality 92. A student (a smaller ResNet-10, without
labels) is trained from each with several seeds, in turns; all are evaluated on the same validation
files. What is done is kept in the output folder, so a run that was stopped continues.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import logitcache
from logitcache.configs import PrecomputeConfig, TrainConfig

SIZE = 32
VIEWS = {"count": 4, "scale": [0.4, 1.0]}
FORMS = {"originals": None, "packed": f"packed:{SIZE}", "views": "views"}
TEACHER = {
    "model": "resnet10t",
    "kwargs": {"channels": [32, 64, 128, 256], "stem_width": 16},
    "size": SIZE,
}
STUDENT = {**TEACHER, "kwargs": {"channels": [16, 32, 64, 128], "stem_width": 16}}


def trained(out: Path, **values: Any) -> float:
    """Train a network unless that is done; return its accuracy in percent."""
    result = out / "result.json"
    if not result.exists():
        shared = {
            "out": str(out),
            "batch_size": 128,
            "crop_pct": 1.0,
            "optimizer": {"lr": 2e-3},
            "eval_every": 10_000,
            "checkpoint_every": 10_000,
            "threads": 1,
        }
        logitcache.train_student(TrainConfig.parse({**shared, **values}, ""))
    found: float = 100 * json.loads(result.read_text())["evaluation"]["top1"]
    return found


def compare(
    train: Path, val: Path, out: Path, *, images: int, steps: int, seeds: int
) -> dict[str, list[float]]:
    """Return the accuracy of every student by form of the images."""
    data: dict[str, Any] = {"name": str(train), "limit": images}
    held = {"name": str(val), "limit": 2 * images}
    teacher = out / "teacher"
    views = {"scale": VIEWS["scale"]}
    known = trained(teacher, data=data, val=held, student=TEACHER, views=views, steps=3 * steps)
    print(f"teacher: {known:.2f}")
    for form, stored in FORMS.items():
        values = {
            "cache": str(out / form),
            "data": data,
            "teachers": {"cnn": {"model": f"local-dir:{teacher / 'export'}"}},
            "views": VIEWS,
            "images": stored,
        }
        logitcache.build_cache(PrecomputeConfig.parse(values, ""))
    found: dict[str, list[float]] = {form: [] for form in FORMS}
    for seed in range(seeds):
        for form, stored in FORMS.items():
            accuracy = trained(
                out / f"{form}-{seed}",
                cache=str(out / form),
                data=data if stored is None else None,
                val=held,
                student=STUDENT,
                steps=steps,
                seed=seed,
            )
            found[form].append(accuracy)
            print(f"{form}, seed {seed}: {accuracy:.2f}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--val", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    found = compare(
        given.train,
        given.val,
        given.out,
        images=given.images,
        steps=given.steps,
        seeds=given.seeds,
    )
    base = found["originals"]
    for form, values in found.items():
        differences = [one - other for one, other in zip(values, base, strict=True)]
        print(
            f"{form}: {statistics.mean(values):.2f} ({min(values):.2f} to {max(values):.2f}), "
            f"difference to originals {statistics.mean(differences):+.2f} "
            f"({', '.join(f'{d:+.2f}' for d in differences)})"
        )


if __name__ == "__main__":
    main()
