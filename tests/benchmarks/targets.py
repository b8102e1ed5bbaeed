"""How fast targets reach a batch, against a warm ``np.memmap`` of raw records.

The reference is TinyViT's record (a seed, K class ids, K probabilities) in one memory-mapped file,
gathered in batches of 256 rows in random order and brought to what a loss takes: int64 ids and
float32 log-probabilities. It neither checks a byte nor knows the tail. Ours is what the loader
does, without images: open the cache, read the windows of an epoch in its order with every object's
digest compared (the second way leaves out digests, as in later epochs over the same view), gather
batches, decode them. All of it is in the page cache; K = 50 of C = 1000, 262144 rows.

The naive way to read a cache is zarr's own indexing by the rows of each batch.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import zarr

from logitcache.cache.format import default_unit_rows
from logitcache.cache.reader import Cache, open_cache
from logitcache.encoding.sparse import SparseEncoding
from logitcache.targets.gather import TargetsReader
from logitcache.targets.loader import DEFAULT_TARGET_MEMORY, Targets
from logitcache.targets.order import epoch_windows
from logitcache.targets.prefetch import read_ahead
from tests.benchmarks.measuring import Measurement, ratio_of_times
from tests.benchmarks.peers.records import record_dtype, records_of
from tests.benchmarks.synthetic import teacher_logits
from tests.cache.building import (
    VIEW,
    declare,
    encode,
    samples_of,
    start_cache,
    write_samples,
    write_teacher,
)

if TYPE_CHECKING:
    from logitcache.cache.groups import TeacherGroup
    from logitcache.encoding.arrays import Encoded

__all__ = ["make_cache", "our_epoch"]

CLASSES, TOP_K, ROWS, BATCH = 1000, 50, 262_144, 256
GENERATED = 8192
NAIVE_BATCHES = 4


def make_cache(path: Path, rows: int) -> tuple[Encoded, SparseEncoding]:
    """Write a sealed cache of one teacher; return what it holds and how it is encoded."""
    unit = default_unit_rows(rows)
    writer = start_cache(path, rows, unit=unit)
    samples = samples_of(rows, unit=unit)
    encoding = SparseEncoding(CLASSES, TOP_K)
    group: TeacherGroup = declare(writer, "t", encoding, unit)
    few = encode(group, teacher_logits(GENERATED, CLASSES), samples_of(GENERATED, unit=GENERATED))
    encoded = {n: np.resize(a, (len(samples["key"]), *a.shape[1:])) for n, a in few.items()}
    write_samples(writer, samples)
    write_teacher(writer, group, encoded)
    writer.seal("fingerprint", {})
    return encoded, encoding


def our_epoch(cache: Cache, rows_N: np.ndarray, epoch: int = 0) -> int:
    """Walk one epoch of targets as the loader does; return how many were seen."""
    targets = Targets.of(cache, ["t"], target_memory=DEFAULT_TARGET_MEMORY)
    windows = epoch_windows(
        rows_N,
        seed=0,
        epoch=epoch,
        unit_rows=targets.unit_rows,
        window_units=targets.window_units,
    )
    seen = 0
    for window, read in read_ahead(windows, lambda w: targets.reader.read(VIEW, w.units)):
        for start in range(0, len(window.rows), BATCH):
            answers = read.gather(window.rows[start : start + BATCH])["t"]
            seen += len(answers.log_probs)
    return seen


def reference_epoch(file: Path) -> int:
    """Gather all records in random order, a batch at a time."""
    records = np.memmap(file, record_dtype(TOP_K), mode="r")
    order = np.random.default_rng(0).permutation(len(records))
    seen = 0
    for start in range(0, len(order), BATCH):
        batch = records[order[start : start + BATCH]]
        ids = torch.from_numpy(batch["ids"].astype(np.int64))
        log_probs = torch.from_numpy(np.log(batch["probs"].astype(np.float32)))
        seen += len(ids) * (len(log_probs) > 0)
    return seen


def naive_epoch(path: Path, rows_N: np.ndarray, encoding: SparseEncoding) -> int:
    """Read some batches by zarr's own indexing."""
    group = zarr.open_group(path / "teachers/t", mode="r")
    arrays = {name: group[name] for name in encoding.specs()}
    order = np.random.default_rng(0).permutation(rows_N)[: NAIVE_BATCHES * BATCH]
    for start in range(0, len(order), BATCH):
        rows = np.sort(order[start : start + BATCH])
        encoding.decode({name: array.oindex[0, rows] for name, array in arrays.items()})
    return len(order)


def measure() -> list[Measurement]:
    """Return rates as shares of the reference's."""
    rows_N = np.arange(ROWS)
    with tempfile.TemporaryDirectory() as folder:
        path, file = Path(folder) / "c", Path(folder) / "records"
        encoded, encoding = make_cache(path, ROWS)
        records_of(encoding.decode(encoded)).tofile(file)
        warm = open_cache(path)

        def load() -> object:
            cache = open_cache(path)
            units = tuple(range(ROWS // cache.unit_rows))
            return TargetsReader(cache, ["t"]).read(VIEW, units)

        def load_checked() -> object:
            units = tuple(range(ROWS // warm.unit_rows))
            return TargetsReader(warm, ["t"]).read(VIEW, units)

        def reference() -> object:
            return reference_epoch(file)

        def naive() -> object:
            return naive_epoch(path, rows_N, encoding)

        ways = {
            "whole-view load, first time": (load, 0.35),
            "whole-view load, digests compared before": (load_checked, 0.35),
            "shuffled epoch of targets, first time": (
                lambda: our_epoch(open_cache(path), rows_N),
                0.20,
            ),
            "shuffled epoch of targets, digests compared before": (
                lambda: our_epoch(warm, rows_N),
                0.20,
            ),
        }
        found = [
            ratio_of_times(
                f"{name}: rate against memmap",
                way,
                reference,
                rounds=7,
                target=bound,
                inverse=True,
            )
            for name, (way, bound) in ways.items()
        ]
        share = NAIVE_BATCHES * BATCH / ROWS
        against = ratio_of_times(
            "shuffled epoch of targets: rate against naive zarr oindex",
            lambda: our_epoch(open_cache(path), rows_N),
            naive,
            rounds=5,
            inverse=True,
        )
    return [*found, _scaled(against, 1 / share, 200.0)]


def _scaled(row: Measurement, by: float, target: float) -> Measurement:
    """Return a row for as many times the work of the reference."""
    assert row.low is not None
    assert row.high is not None
    return Measurement(
        row.name,
        row.value * by,
        row.unit,
        row.low * by,
        row.high * by,
        target,
        at_most=False,
        note=f"{NAIVE_BATCHES} naive batches stand for {1 / (1 / by):.0f} times as many",
    )
