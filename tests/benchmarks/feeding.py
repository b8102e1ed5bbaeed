"""Formats of other projects compared with ours: bytes, rates, waiting time of a training loop.

The same 32768 rows (K = 50 of C = 1000, 8192 distinct ones over and over), each format written and
read as its sources describe it; see :mod:`tests.benchmarks.peers`. *rate*: an epoch, shuffled as
far as the format can, one process, without images or a student. *wait*: the share of a training
loop's time in which it waits for the next batch; images are tensors in memory, so targets are what
it waits for. The second epoch counts, when workers are up. The student is small: it takes 10 000 to
20 000 images a second, as one on an accelerator may.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from logitcache.encoding.logits import log_softmax
from tests.benchmarks.logits import CLASSES, logits_of_rows
from tests.benchmarks.measuring import Measurement
from tests.benchmarks.peers.caches import NaiveZarr, Ours
from tests.benchmarks.peers.pickles import PerBatch, PerImage
from tests.benchmarks.peers.records import MemoryMap, TinyVit
from tests.benchmarks.peers.stored import Feed, Peer, Stored
from tests.benchmarks.peers.tarred import Tarred
from tests.benchmarks.reading import ENCODING, repeated
from tests.cache.building import samples_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

ROWS, SIDE = 32_768, 32
DISTINCT = 8192
WORKERS = (0, 2)
PEERS: tuple[Peer, ...] = (
    Ours(),
    MemoryMap(),
    TinyVit(),
    PerImage(),
    PerBatch(),
    Tarred(),
    NaiveZarr(),
)


def stored_targets() -> Stored:
    """Return what all formats are given."""
    encoded = repeated(ROWS)
    dense = log_softmax(logits_of_rows(DISTINCT))[0].astype(np.float16)
    return Stored(
        samples=samples_of(ROWS, unit=ROWS),
        encoded=encoded,
        decoded=ENCODING.decode(encoded),
        log_probs=np.resize(dense, (ROWS, CLASSES)),
    )


def bytes_below(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


class Student:
    """Two layers and one step of them: cross-entropy with whatever a format gives."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self._network = nn.Sequential(
            nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 128), nn.GELU(), nn.Linear(128, CLASSES)
        )
        self._optimizer = torch.optim.SGD(self._network.parameters(), lr=1e-3)

    def __call__(self, images: Tensor, ids_BK: Tensor, log_probs_BK: Tensor) -> None:
        log_s_BC = functional.log_softmax(self._network(images.float() / 255), 1)
        log_s_BK = log_s_BC.gather(1, ids_BK) if ids_BK.shape[1] else log_s_BC
        loss = -(log_probs_BK.exp() * log_s_BK).sum(1).mean()
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()


def rate(feed: Feed) -> float:
    """Return the targets per second of one epoch."""
    start, seen = time.perf_counter(), 0
    for _, _, log_probs in feed:
        seen += len(log_probs)
    return seen / (time.perf_counter() - start)


def waiting(feed: Feed, student: Student) -> float:
    """Return the share of the second epoch in which the loop waits for a batch."""
    for _ in feed:
        pass
    start, waited = time.perf_counter(), 0.0
    batches: Iterator[tuple[Tensor, Tensor, Tensor]] = iter(feed)
    while True:
        requested = time.perf_counter()
        batch = next(batches, None)
        waited += time.perf_counter() - requested
        if batch is None:
            return waited / (time.perf_counter() - start)
        student(*batch)


def measure() -> list[Measurement]:
    """Return bytes a row, rates and waits of every format."""
    stored, student = stored_targets(), Student()
    images = torch.randint(0, 256, (ROWS, 3, SIDE, SIDE), dtype=torch.uint8)
    nothing = torch.empty(ROWS, 0)
    rows = []
    for peer in PEERS:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            written = peer.write(folder, stored)
            size = bytes_below(folder) / written
            rows.append(Measurement(f"{peer.name}: bytes", size, "B a row", note=peer.lacks))
            rates = [rate(peer.feed(folder, nothing, stored, 0)) for _ in range(3)]
            rows.append(
                Measurement(
                    f"{peer.name}: rate", sorted(rates)[1], "targets/s", min(rates), max(rates)
                )
            )
            for workers in WORKERS:
                share = waiting(peer.feed(folder, images, stored, workers), student)
                rows.append(Measurement(f"{peer.name}: wait, {workers} workers", share, ""))
    return rows
