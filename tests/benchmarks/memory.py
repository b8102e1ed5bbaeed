"""Peak memory of precompute and of training by rows, beyond the window and the list of files.

Every figure is the growth of a child's peak between N and ten times as many rows. Source, pictures
and answers cost nothing: keys are generated on access, every image is the same, and the
teacher answers zeros without being run. All else is the real thing: plan, units, commits, seal and
probes; matching, a training of some steps, and a walk through all windows of an epoch. What a
reader keeps of a folder is measured apart.

Children run as ``python -m tests.benchmarks.memory KIND ROWS FOLDER``.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import tracemalloc
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from logitcache.cache.format.names import Status
from logitcache.data.identity import content_digest, stored_bytes
from logitcache.data.readers import open_source
from logitcache.precompute.build import build_cache
from logitcache.precompute.config import PrecomputeConfig
from logitcache.precompute.run import compute
from logitcache.precompute.run.unit import Batch
from logitcache.targets.epochs.order import epoch_rows, epoch_windows
from logitcache.targets.images.row_ids import AllRows
from logitcache.targets.selection import cached_targets
from logitcache.teachers.ensemble import Ensemble
from logitcache.training.config import TrainConfig
from logitcache.training.loop import train_student
from tests.benchmarks.measuring import Measurement
from tests.conftest import write_teacher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from numpy.typing import NDArray

    from logitcache.precompute.plan.worklist import Block

ROWS, MORE = 50_000, 500_000
FILES, MORE_FILES = 5_000, 50_000
BOUND = 20.0
_UNIT, _CLASSES, _STEPS = 8192, 10, 30
_WINDOW = 2 * 2**20
_IMAGE = np.full((8, 8), 100, dtype=np.uint8)
_BILLION = 10**9


class _Keys:
    """Keys that are generated on access."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> str:
        if index >= self._count:
            raise IndexError(index)
        return f"{index // 1000:05d}/{index:09d}.png"


class _Source:
    """As many images as one likes, all the same; it keeps nothing of any of them."""

    def __init__(self, count: int) -> None:
        self.description = f"{count} images out of thin air"
        self.class_names = [str(number) for number in range(_CLASSES)]
        self.keys: Any = _Keys(count)
        self.sizes = np.broadcast_to(np.int64(len(stored_bytes(_IMAGE))), count)
        self.labels = np.broadcast_to(np.int32(3), count)

    def read(self, index: int) -> NDArray[np.uint8]:
        return _IMAGE


class _NoPictures:
    """Renders nothing, and knows the digest of the only image."""

    oddities: ClassVar[Counter[str]] = Counter()

    def __init__(self, *_: object, batch_rows: int, **__: object) -> None:
        digest = np.frombuffer(content_digest(_IMAGE), dtype=np.uint8)
        self._rows, self._digest = batch_rows, digest

    def close(self) -> None:
        pass

    def batches(self, view_id: str, starts: Iterable[int], block: Block) -> Iterator[Batch]:
        pixels = np.zeros((self._rows, 3, 8, 8), dtype=np.uint8)
        for start in starts:
            here = slice(start - block.start, start - block.start + self._rows)
            shown = block.status[here] == Status.OK
            block.digests[here][shown] = self._digest
            block.sizes[here][shown] = len(stored_bytes(_IMAGE))
            yield Batch(start, {8: pixels}, {})


def _no_forward(
    _: Ensemble,
    pixels: Mapping[int, NDArray[np.uint8]],
    batches: object,
    requested: Iterable[str],
    shown: object = None,
) -> dict[str, Callable[[], NDArray[np.float32]]]:
    logits = np.zeros((len(next(iter(pixels.values()))), _CLASSES), dtype=np.float32)
    return dict.fromkeys(requested, lambda: logits)


def _precompute(source: _Source, folder: Path) -> None:
    replaced: dict[Any, dict[str, Any]] = {
        compute: {"SourceRenderer": _NoPictures},
        Ensemble: {"start": _no_forward},
    }
    for owner, attributes in replaced.items():
        for name, value in attributes.items():
            setattr(owner, name, value)
    values = {
        "cache": str(folder / "cache"),
        "teachers": {"cnn": {"model": f"local-dir:{folder / 'teacher'}"}},
        "views": {"count": 0, "eval": True},
        "unit_rows": _UNIT,
        "min_accuracy": 0.0,
        "batch_size": 1024,
        "device": "cpu",
    }
    build_cache(PrecomputeConfig.parse(values, ""), data=source)


def _train(source: _Source, folder: Path) -> None:
    values = {
        "out": str(folder / "student"),
        "cache": str(folder / "cache"),
        "student": {"model": f"local-dir:{folder / 'teacher'}", "size": 8},
        "objectives": ["soft", "label"],
        "steps": _STEPS,
        "target_memory": _WINDOW,
        "device": "cpu",
        "threads": 1,
    }
    train_student(TrainConfig.parse(values, ""), data=source)


def _walk(source: _Source, folder: Path) -> None:
    """Read the targets and digests of a whole epoch, in its order."""
    rows, targets = cached_targets(str(folder / "cache"), source, target_memory=_WINDOW)
    assert rows.digests is not None
    (view,) = targets.views.values()
    size = targets.unit_rows(view)
    for window in epoch_windows(
        rows.numbers,
        seed=0,
        epoch=0,
        unit_rows=size,
        window_units=targets.window_units(size),
    ):
        read = targets.reader.read(view, window.units, size)
        for start in range(0, len(window.rows), 1024):
            read.gather(window.rows[start : start + 1024])
        rows.digests.at(int(window.rows[0]))


def _list(count: int, folder: Path) -> object:
    """Keep what the reader of a folder keeps."""
    for index in range(count):
        path = folder / f"{count}/{index % 100:03d}/{index:09d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    _forget_peak()
    return open_source(str(folder / str(count)))


def _forget_peak() -> int:
    """Reset the kernel's peak of resident memory; return the bytes resident now."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def _child(kind: str, count: int, folder: Path) -> int:
    """Return by how many bytes the resident memory grew at its highest."""
    torch.set_num_threads(1)
    source = _Source(count)
    kept: object = None
    before = _forget_peak()
    if kind == "list":
        kept = _list(count, folder)
        return _status("VmRSS") - before if kept else 0
    {"precompute": _precompute, "train": _train, "walk": _walk}[kind](source, folder)
    return _status("VmHWM") - before


def _grown(kind: str, count: int, folder: Path) -> int:
    command = [sys.executable, "-m", "tests.benchmarks.memory", kind, str(count), str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


def _row(name: str, kind: str, folders: dict[int, Path], target: float | None) -> Measurement:
    (few, small), (many, large) = (
        (count, _grown(kind, count, folder)) for count, folder in folders.items()
    )
    note = f"peak above start {small / 1e6:.1f} MB at {few} rows, {large / 1e6:.1f} MB at {many}"
    return Measurement(name, (large - small) / (many - few), "B/row", target=target, note=note)


def _order() -> Measurement:
    """Walk the start, the middle and the end of an epoch of 10^9 rows, both ways of it."""
    tracemalloc.start()
    for skip in (0, _BILLION // 2, _BILLION - 10):
        rows = AllRows(_BILLION)
        for _ in islice(epoch_rows(rows, seed=0, epoch=0, skip=skip), 10):
            pass
        windows = epoch_windows(rows, seed=0, epoch=0, unit_rows=65536, window_units=8, skip=skip)
        for _ in islice(windows, 3):
            pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return Measurement("epoch order of 10^9 rows: peak memory", peak / 1e6, "MB")


def measure() -> list[Measurement]:
    """Return the bytes of a row of precompute and training, of a list of files, and of an order."""
    with tempfile.TemporaryDirectory() as name:
        folders = {count: Path(name) / str(count) for count in (ROWS, MORE)}
        for folder in folders.values():
            write_teacher(folder / "teacher", classes=_CLASSES, model="cnn")
        lists = {FILES: Path(name), MORE_FILES: Path(name)}
        return [
            _row("precompute: peak memory", "precompute", folders, BOUND),
            _row("training: peak memory", "train", folders, BOUND),
            _row("all windows of an epoch: peak memory", "walk", folders, BOUND),
            _row("list of files of a folder (apart)", "list", lists, None),
            _order(),
        ]


if __name__ == "__main__":
    print(_child(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])))
