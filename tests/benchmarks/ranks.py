"""Two processes against one, with and without batch norm: early losses and final accuracy.

A vision transformer and a small ResNet learn scikit-learn's digits from their labels, three seeds
each, at the same global batch.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks.measuring import Measurement
from tests.processes import run_ranks
from tests.training.test_ranks import Record, train

SEEDS, STEPS, FIRST = 3, 120, 50
STUDENTS: dict[str, dict[str, Any]] = {
    "ViT, no batch norm": {
        "model": "vit_tiny_patch16_224",
        "kwargs": {"img_size": 8, "patch_size": 2, "embed_dim": 48, "depth": 3, "num_heads": 3},
    },
    "ResNet, batch norm": {
        "model": "resnet10t",
        "kwargs": {"channels": [16, 32, 32, 32], "stem_width": 16},
        "size": 16,
    },
}


def measure() -> list[Measurement]:
    """Return, by student, the largest difference of early losses, and of mean accuracies."""
    return [row for name in STUDENTS for row in _rows(name)]


def _rows(name: str) -> list[Measurement]:
    runs = [(_run(name, seed, 1), _run(name, seed, 2)) for seed in range(SEEDS)]
    largest = max(
        abs(many - one) / abs(one)
        for alone, together in runs
        for one, many in zip(alone.losses[:FIRST], together.losses[:FIRST], strict=True)
    )
    alone, together = ([100 * float(run[i].top1 or 0) for run in runs] for i in (0, 1))
    means = [statistics.mean(values) for values in (alone, together)]
    spreads = [statistics.stdev(values) for values in (alone, together)]
    note = ", ".join(
        f"{who} {mean:.1f} ± {spread:.1f}"
        for who, mean, spread in zip(("one", "two"), means, spreads, strict=True)
    )
    bound = 1e-4 if "no batch norm" in name else None
    return [
        Measurement(
            f"{name}: first {FIRST} losses, largest difference", largest, "x", target=bound
        ),
        Measurement(
            f"{name}: top-1, two processes less one",
            means[1] - means[0],
            "points",
            note=f"{note} over {SEEDS} seeds",
        ),
    ]


def _run(name: str, seed: int, processes: int) -> Record:
    with tempfile.TemporaryDirectory() as folder:
        values = {
            "out": str(Path(folder) / "out"),
            "data": {"name": "digits", "limit": 600},
            "val": {"name": "digits", "split": "val"},
            "student": STUDENTS[name],
            "views": {"scale": [0.7, 1.0], "hflip": 0.0},
            "optimizer": {"lr": 3e-3},
            "steps": STEPS,
            "batch_size": 64,
            "eval_every": 1000,
            "crop_pct": 1.0,
            "seed": seed,
            "device": "cpu",
            "threads": 1,
        }
        records = run_ranks(processes, train, values)
    first = records[0]
    assert isinstance(first, Record), first
    return first
