"""Bytes of a row and view, against TinyViT's records, at C = 1000 on synthetic logits.

Everything of one teacher's group is counted: arrays, their metadata, checksums, shard indexes and
commits. A TinyViT record is a seed, K class ids of two bytes and K probabilities of two: 4 K + 4.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from logitcache.cache.store.open import locate
from logitcache.encoding.sparse import SparseEncoding
from tests.benchmarks.measuring import Measurement
from tests.benchmarks.synthetic import teacher_logits
from tests.cache.building import declare, encode, samples_of, start_cache, write_teacher

CLASSES, ROWS, UNIT = 1000, 131072, 8192
BOUNDS = {10: 0.64, 50: 0.43, 100: 0.38}
_GENERATED = 8192  # rows that are drawn at once


def measure() -> list[Measurement]:
    """Return the share of TinyViT's bytes that a row takes, for K = 10, 50 and 100."""
    samples = samples_of(ROWS, unit=UNIT)
    blocks = [teacher_logits(_GENERATED, CLASSES, seed) for seed in range(ROWS // _GENERATED)]
    logits = np.concatenate(blocks)
    rows = []
    for top_k, bound in BOUNDS.items():
        with tempfile.TemporaryDirectory() as folder:
            writer = start_cache(Path(folder) / "c", ROWS, unit=UNIT)
            group = declare(writer, "t", SparseEncoding(CLASSES, top_k), UNIT)
            write_teacher(writer, group, encode(group, logits, samples))
            location = locate(Path(folder) / "c")
            stored = location.bytes_below("teachers/t") + location.bytes_below("commits/teachers/t")
        per_row, record = stored / ROWS, 4 * top_k + 4
        note = f"{per_row:.1f} B against {record} B"
        name = f"bytes of a row and view, K = {top_k}"
        rows.append(Measurement(name, per_row / record, "x", target=bound, note=note))
    return rows
