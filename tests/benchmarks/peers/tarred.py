"""Top-k log-probabilities per iteration, zstd inside tar shards, as Megatron-LM keeps them.

Source: NVIDIA/Megatron-LM, offline logits distillation: the first member of a shard is
``_meta.json``; every other one a compressed ``.pt`` payload of one iteration with float16
log-probabilities and class ids of 17 bits, uint16 and a packed bit. Shards are read in order of
iterations by the micro-batch they were made with.
"""

from __future__ import annotations

import io
import json
import tarfile
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numcodecs import Zstd
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from tests.benchmarks.peers.stored import BATCH, Feed, Stored

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["Tarred"]

_ITERATIONS = 8  # of a shard


class Tarred:
    """Tar shards of compressed iterations, read in order."""

    name = "zstd payloads per iteration in tar shards (Megatron-LM), in order"
    lacks = "another order, other T, checksums, teacher identity, classes above 131072"

    def write(self, folder: Path, stored: Stored) -> int:
        rows = len(stored.keys)
        span = BATCH * _ITERATIONS
        meta = {"hash": "0", "identifiers": {"train_samples": rows}, "top_k": 50}
        for shard, first in enumerate(range(0, rows, span)):
            with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
                _add(tar, "_meta.json", json.dumps(meta).encode())
                for start in range(first, min(first + span, rows), BATCH):
                    _add(tar, f"{start // BATCH:07d}.pt.zst", _payload(stored, start))
        return rows

    def feed(self, folder: Path, images: Tensor, stored: Stored, workers: int) -> Feed:
        return DataLoader(
            _TarSet(folder, images),
            batch_size=None,
            num_workers=workers,
            persistent_workers=workers > 0,
        )


def _payload(stored: Stored, start: int) -> bytes:
    ids = stored.decoded.class_ids[start : start + BATCH]
    content = {
        "ids": torch.from_numpy((ids & 0xFFFF).astype(np.uint16)),
        "high": torch.from_numpy(np.packbits((ids >> 16).astype(np.uint8), axis=1)),
        "log_probs": torch.from_numpy(stored.decoded.log_probs[start : start + BATCH]).half(),
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return bytes(Zstd(level=3).encode(buffer.getvalue()))


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


class _TarSet(IterableDataset[Any]):
    def __init__(self, folder: Path, images: Tensor) -> None:
        self._shards = sorted(folder.glob("*.tar"))
        self._images = images

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        info = get_worker_info()
        mine = self._shards if info is None else self._shards[info.id :: info.num_workers]
        for shard in mine:
            with tarfile.open(shard) as tar:
                for member in tar:
                    if member.name != "_meta.json":
                        yield self._batch(tar, member)

    def _batch(
        self, tar: tarfile.TarFile, member: tarfile.TarInfo
    ) -> tuple[Tensor, Tensor, Tensor]:
        packed: Any = tar.extractfile(member)
        content = torch.load(io.BytesIO(Zstd().decode(packed.read())), weights_only=True)
        low: NDArray[Any] = content["ids"].numpy().astype(np.int64)
        high = np.unpackbits(content["high"].numpy(), axis=1, count=low.shape[1]).astype(np.int64)
        start = int(member.name.partition(".")[0]) * BATCH
        images = self._images[start : start + BATCH]
        return images, torch.from_numpy(low | high << 16), content["log_probs"].float()
