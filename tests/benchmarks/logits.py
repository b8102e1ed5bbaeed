"""Logits that benchmarks store and read: of a real classifier if a file is given, else synthetic.

``python -m tests.benchmarks storage --logits logits.npz`` takes a file of
:mod:`tests.benchmarks.imagenet_logits`. Without one, logits come from
:mod:`tests.benchmarks.synthetic`, which compress and code worse than those of a real classifier.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from tests.benchmarks.synthetic import teacher_logits

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["CLASSES", "VARIABLE", "kind_of_logits", "logits_of_rows"]

CLASSES = 1000
VARIABLE = "LOGITCACHE_BENCHMARK_LOGITS"
_DRAWN = 8192  # synthetic rows that are drawn at once: memory stays bounded


def kind_of_logits() -> str:
    """Return what the rows of a table are named after: ``real`` or ``synthetic``."""
    return "real" if VARIABLE in os.environ else "synthetic"


def logits_of_rows(rows: int) -> NDArray[np.float32]:
    """Return logits (N, 1000), N = rows, or as many as the file has if that is fewer.

    Real rows are in random order (seed 0) with the views of all images mixed, as batches have them.
    """
    if kind_of_logits() == "synthetic":
        counts = [min(_DRAWN, rows - start) for start in range(0, rows, _DRAWN)]
        return np.concatenate([teacher_logits(n, CLASSES, seed) for seed, n in enumerate(counts)])
    stored: NDArray[np.float32] = np.load(os.environ[VARIABLE])["logits"].reshape(-1, CLASSES)
    return stored[np.random.default_rng(0).permutation(len(stored))[:rows]]
