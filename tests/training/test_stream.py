"""A training sees the same pictures and targets whatever the batches, the order and the workers."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from logitcache.precompute.build import build_cache
from logitcache.precompute.config import PrecomputeConfig
from logitcache.targets.reader import TargetsReader
from logitcache.training.config import TrainConfig
from logitcache.training.loop import train_student

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from logitcache.batch import TargetBatch
    from logitcache.targets.reader import TargetWindow
    from logitcache.views.spec import View

Teachers = dict[str, dict[str, str]]
VIEWS = {
    "count": 2,
    "auto_augment": "rand-m9-mstd0.5-inc1",
    "re_prob": 0.5,
    "mixup_alpha": 0.8,
    "cutmix_alpha": 1.0,
    "derive": ["rot90(2)"],
}


@pytest.fixture(scope="module")
def cache(images: Path, teachers: Teachers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stream") / "cache"
    values = {
        "cache": str(path),
        "data": str(images),
        "teachers": teachers,
        "views": VIEWS,
        "unit_rows": 16,
    }
    build_cache(PrecomputeConfig.parse(values, ""))
    return path


class Stream:
    """Counts everything a step is made of, row by row, whatever batch it came in."""

    def __init__(self) -> None:
        self.rows: Counter[bytes] = Counter()
        self.order: list[int] = []

    def __call__(self, images: Tensor, targets: TargetBatch) -> TargetBatch:
        assert targets.lam is not None
        assert targets.partner_labels is not None
        for i, row in enumerate(targets.rows.tolist()):
            answers = [targets.teachers[name].log_probs[i] for name in sorted(targets.teachers)]
            parts = [images[i], targets.labels[i], targets.partner_labels[i], targets.lam[i]]
            content = b"".join(part.numpy().tobytes() for part in [*parts, *answers])
            self.rows[hashlib.sha256(b"%d " % row + content).digest()] += 1
            self.order.append(row)
        return targets


def config(cache: Path, images: Path, out: Path, **fields: Any) -> TrainConfig:
    values = {
        "out": str(out),
        "data": str(images),
        "cache": str(cache),
        "student": {
            "model": "resnet10t",
            "kwargs": {"channels": [16] * 4, "stem_width": 16},
            "size": 32,
        },
        "objectives": ["soft", "label"],
        "epochs": 4,
        "batch_size": 16,
        **fields,
    }
    return TrainConfig.parse(values, "")


def stream(cache: Path, images: Path, out: Path, **fields: Any) -> Stream:
    found = Stream()
    train_student(config(cache, images, out, **fields), answer=found)
    return found


def test_pictures_and_targets_are_those_of_the_first_run(
    cache: Path, images: Path, tmp_path: Path
) -> None:
    """Four epochs walk four views, all of them mixed, half of them turned."""
    first = stream(cache, images, tmp_path / "first", threads=1)
    assert len(first.rows) == first.rows.total() == 4 * 60
    again = stream(
        cache, images, tmp_path / "again", batch_size=7, seed=9, workers=2, target_memory=1
    )
    assert again.order != first.order
    assert again.rows == first.rows


@pytest.mark.parametrize(("steps", "epochs"), [(3, 1), (4, 1), (6, 2), (8, 2)])
def test_a_run_reads_ahead_but_no_epoch_that_never_comes(
    cache: Path,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    steps: int,
    epochs: int,
) -> None:
    """Four batches and four windows an epoch; every epoch walks another view."""
    views: list[str] = []
    read, second = TargetsReader.read, threading.Event()

    def noted(self: TargetsReader, view: View, *args: Any) -> TargetWindow:
        views.append(view.id)
        if len(set(views)) == 2:
            second.set()
        return read(self, view, *args)

    shown: list[TargetBatch] = []

    def expect(_: Tensor, targets: TargetBatch) -> TargetBatch:
        shown.append(targets)
        if len(shown) == 4 < steps:
            assert second.wait(20), "the next epoch is read while the last batch is shown"
        return targets

    monkeypatch.setattr(TargetsReader, "read", noted)
    fields = {"target_memory": 1, "epochs": None, "steps": steps, "threads": 1}
    train_student(config(cache, images, tmp_path, **fields), answer=expect)
    assert len(shown) == steps
    assert len(set(views)) == epochs
    assert len(views) <= 4 * epochs
