"""Bytes of a row and view, against TinyViT's records, at C = 1000.

Everything of one teacher's group is counted: arrays, their metadata, checksums, shard indexes and
commits. A TinyViT record is a seed, K class ids of two bytes and K probabilities of two: 4 K + 4.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from logitcache.cache.store.open import locate
from logitcache.encoding.sparse import SparseEncoding
from tests.benchmarks.logits import CLASSES, kind_of_logits, logits_of_rows
from tests.benchmarks.measuring import Measurement
from tests.cache.building import declare, encode, samples_of, start_cache, write_teacher

ROWS, UNIT = 131072, 8192  # of a file of logits, all whole units
BOUNDS = {
    (10, 8): 0.64,
    (50, 8): 0.43,
    (100, 8): 0.38,
    (10, 5): 0.57,
    (50, 5): 0.36,
    (100, 5): 0.31,
}


def measure() -> list[Measurement]:
    """Return the share of TinyViT's bytes that a row takes, by K and bits of a code."""
    logits_NC = logits_of_rows(ROWS)
    count = len(logits_NC) // UNIT * UNIT
    samples = samples_of(count, unit=UNIT)
    rows = []
    for (top_k, bits), bound in BOUNDS.items():
        with tempfile.TemporaryDirectory() as folder:
            writer = start_cache(Path(folder) / "c", count, unit=UNIT)
            group = declare(writer, "t", SparseEncoding.new(CLASSES, top_k, bits=bits), UNIT)
            write_teacher(writer, group, encode(group, logits_NC[:count], samples))
            location = locate(Path(folder) / "c")
            stored = location.bytes_below("teachers/t") + location.bytes_below("commits/teachers/t")
        per_row, record = stored / count, 4 * top_k + 4
        note = f"{per_row:.1f} B against {record} B"
        name = f"{kind_of_logits()} logits, K = {top_k}, {bits} bits: bytes of a row and view"
        rows.append(Measurement(name, per_row / record, "x", target=bound, note=note))
    return rows
