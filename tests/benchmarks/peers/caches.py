"""Our own cache: as the loader reads it, and as it must not be read, a row at a time by zarr."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import zarr
from torch.utils.data import DataLoader, Dataset

from logitcache.cache.format import default_unit_rows
from logitcache.cache.reader import open_cache
from logitcache.targets.gather import TargetsReader
from logitcache.targets.order import Window, epoch_windows
from logitcache.targets.prefetch import read_ahead
from tests.benchmarks.peers.stored import BATCH, Feed, Stored
from tests.cache.building import (
    VIEW,
    declare,
    samples_of,
    start_cache,
    write_samples,
    write_teacher,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import Tensor

__all__ = ["NaiveZarr", "Ours"]

_NAIVE_ROWS = 2 * BATCH  # more would take minutes


def _write(folder: Path, stored: Stored) -> int:
    rows = len(stored.keys)
    unit = default_unit_rows(rows)
    writer = start_cache(folder / "c", rows, unit=unit)
    write_samples(writer, samples_of(rows, unit=unit))
    write_teacher(writer, declare(writer, "t", stored.encoding, unit), stored.encoded)
    writer.seal("fingerprint", {})
    return rows


class Ours:
    """The whole view by a thread, batches gathered in the parent; workers only give images."""

    name = "logitcache"
    lacks = ""

    def write(self, folder: Path, stored: Stored) -> int:
        return _write(folder, stored)

    def feed(self, folder: Path, images: Tensor, stored: Stored, workers: int) -> Feed:
        return _OurFeed(folder / "c", images, workers)


class _Images(Dataset[Any]):
    def __init__(self, images: Tensor) -> None:
        self._images = images

    def __getitems__(self, indices: list[int]) -> Tensor:
        return self._images[indices]


class _OurFeed:
    def __init__(self, path: Path, images: Tensor, workers: int) -> None:
        self._path, self._epoch = path, 0
        self._order: list[list[int]] = []
        self._images = DataLoader(
            _Images(images),
            batch_sampler=self._order,
            num_workers=workers,
            persistent_workers=workers > 0,
            collate_fn=lambda batch: batch,
        )

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        cache = open_cache(self._path)
        targets = TargetsReader(cache, ["t"])
        windows = list(self._windows(cache.manifest.rows, cache.unit_rows))
        self._order[:] = [rows.tolist() for window in windows for rows in _cut(window.rows)]
        images = iter(self._images)
        for window, read in read_ahead(windows, lambda w: targets.read(VIEW, w.units)):
            for rows in _cut(window.rows):
                answers: Any = read.gather(rows)["t"]
                yield next(images), answers.class_ids, answers.log_probs

    def _windows(self, rows: int, unit: int) -> Iterator[Window]:
        self._epoch += 1
        return epoch_windows(
            np.arange(rows), seed=0, epoch=self._epoch, unit_rows=unit, window_units=64
        )


def _cut(rows: np.ndarray[Any, np.dtype[np.int64]]) -> list[np.ndarray[Any, np.dtype[np.int64]]]:
    return [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]


class NaiveZarr:
    """The same cache, every sample fetched through zarr's indexing."""

    name = "the same cache, naively: zarr's a[i] per sample"
    lacks = "a chunk of 4096 rows is decoded for every row"

    def write(self, folder: Path, stored: Stored) -> int:
        return _write(folder, stored)

    def feed(self, folder: Path, images: Tensor, stored: Stored, workers: int) -> Feed:
        found = _NaiveSet(folder / "c/teachers/t", images[:_NAIVE_ROWS], stored)
        return DataLoader(
            found,
            batch_size=BATCH,
            shuffle=True,
            num_workers=workers,
            persistent_workers=workers > 0,
        )


class _NaiveSet(Dataset[Any]):
    def __init__(self, path: Path, images: Tensor, stored: Stored) -> None:
        self._path, self._images, self._encoding = path, images, stored.encoding

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        group = zarr.open_group(self._path, mode="r")
        found: dict[str, Any] = {name: group[name] for name in self._encoding.specs()}
        rows = {name: np.asarray(array[0, index])[None] for name, array in found.items()}
        decoded = self._encoding.decode(rows)
        ids, log_probs = map(torch.from_numpy, (decoded.class_ids[0], decoded.log_probs[0]))
        return self._images[index], ids, log_probs
