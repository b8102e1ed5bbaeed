"""Students of images with two classes each: from a cache, and from their labels alone.

An image shows two of scikit-learn's digits in opposite corners, so it has one or two of ten
classes. The teacher is a ResNet-10-t with a sigmoid for each class, trained on the labels of all
images; its student has a quarter of its channels. Mean average precision on images of other digits,
three seeds, in pairs::

    python -m tests.benchmarks.label_sets runs/label_sets

The folder is resumed if it exists.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.datasets import load_digits

from logitcache.data.readers.torch_dataset import DatasetSource
from logitcache.precompute.build import build_cache
from logitcache.precompute.config import PrecomputeConfig
from logitcache.training.config import TrainConfig
from logitcache.training.loop import train_student

if TYPE_CHECKING:
    from numpy.typing import NDArray

IMAGES, VALIDATION, FEW, SEEDS = 1500, 500, 150, 3
TEACHER_EPOCHS, EPOCHS = 30, 10
VIEWS = {"count": 4, "scale": [0.7, 1.0], "hflip": 0.0}
SOFT: dict[str, Any] = {"soft": {}}
LABEL: dict[str, Any] = {"label": {}}
ARMS: dict[str, dict[str, Any]] = {
    "labels alone": {"objectives": [LABEL], "views": VIEWS},
    "cache and labels": {"objectives": [SOFT, LABEL], "cache": True},
    "cache alone": {"objectives": [SOFT], "cache": True},
    f"{FEW} labels alone": {
        "objectives": [LABEL],
        "views": VIEWS,
        "labels": {"count": FEW, "images": "labeled"},
    },
    f"cache and {FEW} labels": {
        "objectives": [SOFT, LABEL],
        "cache": True,
        "labels": {"count": FEW},
    },
}
PAIRS = {"labels alone": ["cache and labels", "cache alone"]}
PAIRS[f"{FEW} labels alone"] = [f"cache and {FEW} labels"]


def network(width: int) -> dict[str, Any]:
    channels = [width, 2 * width, 4 * width, 8 * width]
    return {
        "model": "resnet10t",
        "size": 16,
        "kwargs": {"stem_width": width, "channels": channels},
    }


def composed(part: slice, count: int, seed: int) -> DatasetSource:
    """Return images of 16x16 pixels with two digits each, from a part of all digits."""
    digits, rng = load_digits(), np.random.default_rng(seed)
    squares: NDArray[np.uint8] = (digits.images[part] * 255 / 16).astype(np.uint8)
    names = digits.target[part]
    images, labels = [], []
    for first, second in rng.integers(len(squares), size=(count, 2)):
        canvas, left = np.zeros((16, 16), np.uint8), 8 * int(rng.random() < 0.5)
        canvas[:8, left : left + 8] = squares[first]
        canvas[8:, 8 - left : 16 - left] = squares[second]
        images.append(np.repeat(canvas[:, :, None], 3, axis=2))
        labels.append(sorted({int(names[first]), int(names[second])}))
    return DatasetSource(images, labels=labels, class_names=[str(n) for n in range(10)])


class Run:
    """The image sets, the teacher and its cache, in a folder."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._train = composed(slice(0, 1200), IMAGES, 0)
        self._val = composed(slice(1200, None), VALIDATION, 1)

    def precision(self, name: str, **values: Any) -> float:
        """Train a network and return its mean average precision in percent."""
        given: dict[str, Any] = {"out": str(self._out / name), "batch_size": 50}
        given |= {"optimizer": {"lr": 3e-3}, "eval_every": values["epochs"]}
        config = TrainConfig(**given, **values)
        result = train_student(config, data=self._train, val=self._val, resume=True)
        assert result.evaluation is not None
        return 100 * result.evaluation.score

    def teacher(self) -> None:
        found = self.precision(
            "teacher",
            student=network(32),
            objectives=[LABEL],
            views=VIEWS,
            epochs=TEACHER_EPOCHS,
        )
        print(f"teacher: {found:.2f}")
        model = {"model": f"local-dir:{self._out / 'teacher/export'}", "head": "sigmoid"}
        values: dict[str, Any] = {"teachers": {"teacher": model}, "views": VIEWS}
        build_cache(PrecomputeConfig(cache=str(self._out / "cache"), **values), data=self._train)

    def student(self, arm: str, seed: int) -> float:
        values = dict(ARMS[arm])
        if values.pop("cache", False):
            values["cache"] = str(self._out / "cache")
        name = f"{arm.replace(' ', '-')}-{seed}"
        return self.precision(name, student=network(8), epochs=EPOCHS, seed=seed, **values)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of the cache and the runs")
    out, started = parser.parse_args().out, time.time()
    run = Run(out)
    run.teacher()
    found: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for seed in range(SEEDS):
        for arm, values in found.items():
            values.append(run.student(arm, seed))
            print(f"seed {seed}, {arm}: {values[-1]:.2f}", flush=True)
    for arm, values in found.items():
        shown = ", ".join(f"{value:.1f}" for value in values)
        print(f"| {arm} | {shown} | {mean(values):.1f} ± {stdev(values):.1f} |")
    for reference, arms in PAIRS.items():
        for arm in arms:
            pairs = zip(found[arm], found[reference], strict=True)
            paired = [value - other for value, other in pairs]
            print(f"{arm} - {reference}: {mean(paired):+.2f}, sd {stdev(paired):.2f}")
    print(f"{time.time() - started:.0f} s, load {os.getloadavg()}")


if __name__ == "__main__":
    main()
