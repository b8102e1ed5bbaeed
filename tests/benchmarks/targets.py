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
from typing import Any

import numpy as np
import torch
import zarr

from logitcache.cache.read.reader import Cache, open_cache
from tests.benchmarks.measuring import Measurement, ratio_of_times
from tests.benchmarks.peers.records import record_dtype, records_of
from tests.benchmarks.peers.stored import log_of
from tests.benchmarks.reading import ENCODING, epoch_order, make_cache, repeated, walk, whole
from tests.cache.building import samples_of

ROWS, BATCH = 262_144, 256
NAIVE_BATCHES = 4


def our_epoch(cache: Cache) -> int:
    """Walk one epoch of targets as the loader does; return how many were seen."""
    return sum(len(found.log_probs) for found in walk(cache, epoch_order(cache), BATCH))


def reference_epoch(file: Path) -> int:
    """Gather all records in random order, a batch at a time."""
    records = np.memmap(file, record_dtype(ENCODING.top_k), mode="r")
    order = np.random.default_rng(0).permutation(len(records))
    seen = 0
    for start in range(0, len(order), BATCH):
        batch = records[order[start : start + BATCH]]
        ids = torch.from_numpy(batch["ids"].astype(np.int64))
        log_probs = log_of(batch["probs"])
        seen += len(ids) * (len(log_probs) > 0)
    return seen


def naive_batches(path: Path) -> int:
    """Read some batches by zarr's own indexing."""
    group: Any = zarr.open_group(path / "teachers/t", mode="r")
    arrays = {name: group[name] for name in ENCODING.specs()}
    order = np.random.default_rng(0).permutation(ROWS)[: NAIVE_BATCHES * BATCH]
    for start in range(0, len(order), BATCH):
        rows = np.sort(order[start : start + BATCH])
        ENCODING.decode({name: array.oindex[0, rows] for name, array in arrays.items()})
    return len(order)


def measure() -> list[Measurement]:
    """Return rates as shares of the reference's."""
    with tempfile.TemporaryDirectory() as folder:
        path, file = Path(folder) / "c", Path(folder) / "records"
        encoded = repeated(ROWS)
        make_cache(path, encoded, samples_of(ROWS, unit=ROWS))
        records_of(ENCODING.decode(encoded)).tofile(file)
        seen = open_cache(path)
        caches = {"": lambda: open_cache(path), ", digests compared before": lambda: seen}
        actions = {
            "whole-view load": (whole, 0.35),
            "shuffled epoch of targets": (our_epoch, 0.20),
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
            lambda: our_epoch(open_cache(path)),
            lambda: naive_batches(path),
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
