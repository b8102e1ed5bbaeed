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
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import zarr

from logitcache.cache.format import default_unit_rows
from logitcache.cache.reader import Cache, open_cache
from logitcache.encoding.sparse import SparseEncoding
from logitcache.targets.gather import TargetsReader, TargetWindow
from logitcache.targets.loader import DEFAULT_TARGET_MEMORY
from logitcache.targets.order import epoch_windows
from logitcache.targets.prefetch import read_ahead
from tests.benchmarks.measuring import Measurement, ratio_of_times
from tests.benchmarks.peers.records import record_dtype, records_of
from tests.benchmarks.peers.stored import log_of
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
    from numpy.typing import NDArray

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


def our_epoch(cache: Cache, rows_N: NDArray[np.int64]) -> int:
    """Walk one epoch of targets as the loader does; return how many were seen."""
    reader, unit = TargetsReader(cache, ["t"]), cache.unit_rows
    affordable = DEFAULT_TARGET_MEMORY // (3 * reader.unit_bytes)
    windows = epoch_windows(rows_N, seed=0, epoch=0, unit_rows=unit, window_units=affordable)
    seen = 0
    for window, read in read_ahead(windows, lambda w: reader.read(VIEW, w.units)):
        for start in range(0, len(window.rows), BATCH):
            seen += len(read.gather(window.rows[start : start + BATCH])["t"].log_probs)
    return seen


def reference_epoch(file: Path) -> int:
    """Gather all records in random order, a batch at a time."""
    records = np.memmap(file, record_dtype(TOP_K), mode="r")
    order = np.random.default_rng(0).permutation(len(records))
    seen = 0
    for start in range(0, len(order), BATCH):
        batch = records[order[start : start + BATCH]]
        ids = torch.from_numpy(batch["ids"].astype(np.int64))
        log_probs = log_of(batch["probs"])
        seen += len(ids) * (len(log_probs) > 0)
    return seen


def whole_view(cache: Cache) -> TargetWindow:
    """Read all units of the view."""
    return TargetsReader(cache, ["t"]).read(VIEW, tuple(range(ROWS // cache.unit_rows)))


def naive_batches(path: Path, rows_N: NDArray[np.int64], encoding: SparseEncoding) -> int:
    """Read some batches by zarr's own indexing."""
    group: Any = zarr.open_group(path / "teachers/t", mode="r")
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
        seen = open_cache(path)
        caches = {"": lambda: open_cache(path), ", digests compared before": lambda: seen}
        actions = {
            "whole-view load": (whole_view, 0.35),
            "shuffled epoch of targets": (lambda cache: our_epoch(cache, rows_N), 0.20),
        }
        found = [
            ratio_of_times(
                f"{name}{how}: rate against memmap",
                lambda action=action, cache=cache: action(cache()),  # type: ignore[misc]  # mypy infers no default
                lambda: reference_epoch(file),
                rounds=9,
                target=bound,
                inverse=True,
            )
            for name, (action, bound) in actions.items()
            for how, cache in caches.items()
        ]
        against = ratio_of_times(
            "",
            lambda: our_epoch(open_cache(path), rows_N),
            lambda: naive_batches(path, rows_N, encoding),
            rounds=5,
            inverse=True,
        )
    return [*found, _of_all_batches(against)]


def _of_all_batches(row: Measurement) -> Measurement:
    """Return how much slower all naive batches would be, from a few of them."""
    assert row.low is not None
    assert row.high is not None
    times = ROWS // (NAIVE_BATCHES * BATCH)
    low, middle, high = (times * value for value in (row.low, row.value, row.high))
    name = "shuffled epoch of targets: rate against naive zarr oindex"
    note = f"of {times * NAIVE_BATCHES} naive batches {NAIVE_BATCHES} were read"
    return Measurement(name, middle, "x", low, high, 200.0, at_most=False, note=note)
