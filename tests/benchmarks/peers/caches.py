"""Our own cache: as the loader reads it, and as it must not be read, a row at a time by zarr."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import zarr
from torch.utils.data import DataLoader, Dataset

from logitcache.cache.read.reader import open_cache
from tests.benchmarks.peers.stored import BATCH, Feed, Stored
from tests.benchmarks.reading import ENCODING, epoch_order, make_cache, walk

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import Tensor

__all__ = ["NaiveZarr", "Ours"]

_NAIVE_ROWS = 2 * BATCH  # more would take minutes


def _write(folder: Path, stored: Stored) -> int:
    make_cache(folder / "c", stored.encoded, stored.samples)
    return len(stored.keys)


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
        cache, self._epoch = open_cache(self._path), self._epoch + 1
        windows = epoch_order(cache, self._epoch)
        rows = [window.rows for window in windows]
        self._order[:] = [
            part[start : start + BATCH].tolist()
            for part in rows
            for start in range(0, len(part), BATCH)
        ]
        targets = walk(cache, windows, BATCH)
        for images, answers in zip(self._images, targets, strict=True):
            yield images, answers.class_ids, answers.log_probs


class NaiveZarr:
    """The same cache, every sample fetched through zarr's indexing."""

    name = "the same cache, naively: zarr's a[i] per sample"
    lacks = "a chunk of 4096 rows is decoded for every row"

    def write(self, folder: Path, stored: Stored) -> int:
        return _write(folder, stored)

    def feed(self, folder: Path, images: Tensor, stored: Stored, workers: int) -> Feed:
        found = _NaiveSet(folder / "c/teachers/t", images[:_NAIVE_ROWS])
        return DataLoader(
            found,
            batch_size=BATCH,
            shuffle=True,
            num_workers=workers,
            persistent_workers=workers > 0,
        )


class _NaiveSet(Dataset[Any]):
    def __init__(self, path: Path, images: Tensor) -> None:
        self._path, self._images = path, images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        group = zarr.open_group(self._path, mode="r")
        found: dict[str, Any] = {name: group[name] for name in ENCODING.specs()}
        rows = {name: np.asarray(array[0, index])[None] for name, array in found.items()}
        decoded = ENCODING.decode(rows)
        ids, log_probs = map(torch.from_numpy, (decoded.class_ids[0], decoded.log_probs[0]))
        return self._images[index], ids, log_probs
