"""Encoding of logits on a processor, against ``torch.topk`` of the same logits.

Both run in one thread; the allocator is configured as ``logitcache precompute`` does.
"""

from __future__ import annotations

import numpy as np
import torch

from logitcache.cache.format.groups import TeacherGroup
from logitcache.encoding.sparse import SparseEncoding
from logitcache.platforms import tune_allocator
from tests.benchmarks.measuring import Measurement, ratio_of_times
from tests.benchmarks.synthetic import teacher_logits

CLASSES, TOP_K, ROWS, BATCH, ROUNDS, REPEAT, BOUND = (1000, 21841), 50, 256, 64, 7, 4, 3.0


def measure() -> list[Measurement]:
    """Return the time of encoding over that of ranking, by the number of classes."""
    tune_allocator()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [_against_topk(num_classes) for num_classes in CLASSES]
    finally:
        torch.set_num_threads(threads)


def _against_topk(num_classes: int) -> Measurement:
    batches = np.split(teacher_logits(ROWS, num_classes), ROWS // BATCH)
    labels_B = np.zeros(BATCH, dtype=np.int32)
    group = TeacherGroup(
        teacher="t",
        num_classes=num_classes,
        encoding=SparseEncoding(num_classes, TOP_K),
        optional=("lse",),
        unit_rows=ROWS,
        slots=("eval",),
        lock_sha256="",
        class_names_sha256="",
    )
    return ratio_of_times(
        f"encoding of {ROWS} rows over torch.topk, C = {num_classes}, K = {TOP_K}",
        lambda: [group.encode(batch, labels_B) for batch in batches],
        lambda: [torch.topk(torch.from_numpy(batch), TOP_K, dim=1) for batch in batches],
        rounds=ROUNDS,
        repeat=REPEAT,
        target=BOUND,
    )
