"""TinyViT's fixed-size record, read per sample or through ``np.memmap``.

Source: microsoft/Cream, TinyViT (Wu et al., ECCV 2022). A folder per epoch; per rank a text file of
keys and a file of records: int32 seed of the augmentation, K int16 class ids, K float16
probabilities at T = 1, so 4 K + 4 bytes; no header, no checksum, no tail. Every worker holds a dict
of all keys, and seeks and reads one record per sample.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from tests.benchmarks.peers.stored import BATCH, Feed, Stored, log_of

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from logitcache.encoding.decoded import DecodedSparse

__all__ = ["MemoryMap", "TinyVit", "record_dtype", "records_of"]

_RANKS = 2


def record_dtype(top_k: int) -> np.dtype[Any]:
    """Return the record of K classes."""
    return np.dtype([("seed", "<i4"), ("ids", "<i2", (top_k,)), ("probs", "<f2", (top_k,))])


def records_of(decoded: DecodedSparse) -> NDArray[Any]:
    """Return the records of some rows."""
    rows, top_k = decoded.class_ids.shape
    records = np.zeros(rows, record_dtype(top_k))
    records["seed"] = np.arange(rows)
    records["ids"] = decoded.class_ids
    records["probs"] = np.exp(decoded.log_probs)
    return records


class TinyVit:
    """Record files of two ranks, one seek and one read per sample."""

    name = "TinyViT record files, read per sample"
    lacks = "stored tail, other T, ids above 32767, checksums, teacher identity, resume in an epoch"

    def write(self, folder: Path, stored: Stored) -> int:
        records = records_of(stored.decoded)
        for rank in range(_RANKS):
            mine = slice(rank, None, _RANKS)
            records[mine].tofile(folder / f"rank{rank}-values.bin")
            (folder / f"rank{rank}-keys.txt").write_text("\n".join(stored.keys[mine]) + "\n")
        return len(records)

    def feed(self, folder: Path, images: Tensor, stored: Stored, workers: int) -> Feed:
        dtype = record_dtype(stored.decoded.class_ids.shape[1])
        found = _TinyVitSet(folder, dtype, images, stored.keys)
        return DataLoader(
            found,
            batch_size=BATCH,
            shuffle=True,
            num_workers=workers,
            persistent_workers=workers > 0,
        )


class _TinyVitSet(Dataset[Any]):
    def __init__(self, folder: Path, dtype: np.dtype[Any], images: Tensor, keys: list[str]) -> None:
        self._folder, self._dtype, self._images, self._keys = folder, dtype, images, keys
        self._place: dict[str, tuple[int, int]] = {}
        self._files: list[Any] = []

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        if not self._files:  # in the worker, as each has its own
            self._open()
        rank, position = self._place[self._keys[index]]
        self._files[rank].seek(position * self._dtype.itemsize)
        record = np.frombuffer(self._files[rank].read(self._dtype.itemsize), self._dtype)[0]
        ids = torch.from_numpy(record["ids"].astype(np.int64))
        return self._images[index], ids, log_of(record["probs"])

    def _open(self) -> None:
        for rank in range(_RANKS):
            keys = (self._folder / f"rank{rank}-keys.txt").read_text().split("\n")
            self._place |= {key: (rank, position) for position, key in enumerate(keys) if key}
            file = (self._folder / f"rank{rank}-values.bin").open("rb")
            weakref.finalize(self, file.close)
            self._files.append(file)


class MemoryMap:
    """The same records in one file, mapped; a batch is one gather."""

    name = "np.memmap of the same records, gathered per batch"
    lacks = "what TinyViT's lack; fast only while the page cache holds it"

    def write(self, folder: Path, stored: Stored) -> int:
        records_of(stored.decoded).tofile(folder / "records")
        return len(stored.keys)

    def feed(self, folder: Path, images: Tensor, stored: Stored, workers: int) -> Feed:
        dtype = record_dtype(stored.decoded.class_ids.shape[1])
        return DataLoader(
            _MappedSet(folder / "records", dtype, images),
            batch_size=BATCH,
            shuffle=True,
            num_workers=workers,
            persistent_workers=workers > 0,
            collate_fn=_as_it_is,
        )


class _MappedSet(Dataset[Any]):
    def __init__(self, file: Path, dtype: np.dtype[Any], images: Tensor) -> None:
        self._records = np.memmap(file, dtype, mode="r")
        self._images = images

    def __len__(self) -> int:
        return len(self._records)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        batch = self._records[indices]
        ids = torch.from_numpy(batch["ids"].astype(np.int64))
        return self._images[indices], ids, log_of(batch["probs"])


def _as_it_is(batch: Any) -> Any:
    return batch
