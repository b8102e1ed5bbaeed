"""One pickle per image (FKD), and one per batch (SRe2L and LPLD).

Sources: szq0214/FKD: ``[coords, flip, label]`` per image, of 500 crops by default; a label of a
crop is K class ids, kept as floats, and K probabilities in float32. The student takes 4 crops of
each image it opens, so a batch of 128 opens 32 files. VILA-Lab/SRe2L: ``[coords, flip, mix_index,
lam, bbox, logits]`` per batch, logits of all classes in float16; the student has to use the same
batches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from tests.benchmarks.peers.stored import BATCH, Feed, Stored

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

__all__ = ["PerBatch", "PerImage"]

_CROPS, _TAKEN = 32, 4
_MOST_IMAGES = 2048  # what a file costs does not depend on their number


class PerImage:
    """FKD: a file per image with all its crops."""

    name = f"one pickle per image (FKD), {_CROPS} crops, {_TAKEN} of them used"
    lacks = "stored tail, other T, atomic writes, checksums, teacher identity, pickle-free reading"

    def write(self, folder: Path, stored: Stored) -> int:
        ids, log_probs = stored.decoded.class_ids, stored.decoded.log_probs
        labels_N2K = np.stack([ids.astype(np.float32), np.exp(log_probs)], axis=1)
        rng = np.random.default_rng(0)
        images = _images_of(stored)
        for image in range(images):
            crops = np.arange(image, image + _CROPS) % len(ids)
            boxes = rng.random((_CROPS, 4), dtype=np.float32)
            content = [boxes, rng.random(_CROPS) < 0.5, labels_N2K[crops]]
            torch.save([torch.from_numpy(array) for array in content], folder / f"{image}.tar")
        return images * _CROPS

    def feed(self, folder: Path, images: Tensor, stored: Stored, workers: int) -> Feed:
        return DataLoader(
            _PerImageSet(folder, images, _images_of(stored)),
            batch_size=BATCH // _TAKEN,
            shuffle=True,
            num_workers=workers,
            persistent_workers=workers > 0,
            collate_fn=_joined,
        )


class _PerImageSet(Dataset[Any]):
    def __init__(self, folder: Path, images: Tensor, files: int) -> None:
        self._folder, self._images, self._files = folder, images, files

    def __len__(self) -> int:
        return self._files

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        _, _, labels = torch.load(self._folder / f"{index}.tar", weights_only=True)
        taken = labels[torch.randperm(_CROPS)[:_TAKEN]]
        crops = self._images[index * _TAKEN : (index + 1) * _TAKEN]
        return crops, taken[:, 0].long(), taken[:, 1].log()


def _images_of(stored: Stored) -> int:
    return min(len(stored.keys) // _TAKEN, _MOST_IMAGES)


def _joined(parts: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


class PerBatch:
    """SRe2L: a file per batch, with every class of every row."""

    name = "one pickle per batch, all classes in float16 (SRe2L)"
    lacks = "other batches, more epochs than stored, sparse targets, checksums, pickle-free reading"

    def write(self, folder: Path, stored: Stored) -> int:
        rng = np.random.default_rng(0)
        for start in range(0, len(stored.keys), BATCH):
            rows = stored.log_probs[start : start + BATCH]
            boxes = torch.from_numpy(rng.random((len(rows), 4), dtype=np.float32))
            content = [boxes, boxes[:, 0] < 0.5, torch.arange(len(rows)), 0.5, [0, 0, 9, 9]]
            file = folder / f"batch_{start // BATCH}.tar"
            torch.save([*content, torch.from_numpy(rows)], file)
        return len(stored.keys)

    def feed(self, folder: Path, images: Tensor, stored: Stored, workers: int) -> Feed:
        return DataLoader(
            _PerBatchSet(folder, images),
            batch_size=None,
            shuffle=True,
            num_workers=workers,
            persistent_workers=workers > 0,
        )


class _PerBatchSet(Dataset[Any]):
    def __init__(self, folder: Path, images: Tensor) -> None:
        self._folder, self._images = folder, images

    def __len__(self) -> int:
        return -(-len(self._images) // BATCH)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        logits = torch.load(self._folder / f"batch_{index}.tar", weights_only=True)[-1].float()
        images = self._images[index * BATCH : (index + 1) * BATCH]
        return images, torch.empty(len(images), 0, dtype=torch.long), logits.log_softmax(1)
