"""Bytes and loss of a real teacher's answers, next to synthetic ones of as many classes.

Reads the dense targets of a cache, encodes them at several K, writes them as a cache of its own
(every byte of the group counts, commits and metadata too) and measures what is lost. For the
teachers of the task of 120 classes (:mod:`tests.benchmarks.many_classes`)::

    logitcache run cifar120 --only cnn --only rednet --only dense --out runs/cifar120 ...
    python -m tests.benchmarks.real_logits runs/cifar120/dense

"mass" is the probability outside the K classes, on average; "top" the mean largest probability.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from logitcache.cache.format.names import default_unit_rows
from logitcache.cache.read.reader import open_cache
from logitcache.cache.store.open import locate
from logitcache.encoding.dense import DenseEncoding
from logitcache.encoding.fidelity import TEMPERATURES, measure_fidelity
from logitcache.encoding.logits import log_softmax
from logitcache.encoding.sparse import SparseEncoding
from tests.benchmarks.synthetic import teacher_logits
from tests.cache.building import declare, encode, samples_of, start_cache, write_teacher

if TYPE_CHECKING:
    from numpy.typing import NDArray

TOP_KS, MEASURED = (5, 10, 20, 50), 4096


def stored_bytes(logits_NC: NDArray[np.float32], top_k: int) -> float:
    """Return the bytes of a row and view of a cache that keeps K classes."""
    rows, classes = len(logits_NC), logits_NC.shape[1]
    unit = default_unit_rows(rows)
    samples = samples_of(rows, unit=unit)
    with tempfile.TemporaryDirectory() as folder:
        writer = start_cache(Path(folder) / "c", rows, unit=unit)
        group = declare(writer, "t", SparseEncoding(classes, top_k), unit)
        write_teacher(writer, group, encode(group, logits_NC, samples))
        location = locate(Path(folder) / "c")
        stored = location.bytes_below("teachers/t") + location.bytes_below("commits/teachers/t")
    return stored / rows


def lines(name: str, logits_NC: NDArray[np.float32]) -> list[str]:
    """Return the rows of a table."""
    log_probs_NC = log_softmax(logits_NC)[0]
    top = float(np.exp(log_probs_NC.max(axis=1)).mean())
    ordered_NC = np.sort(np.exp(log_probs_NC[:MEASURED]), axis=1)
    found = []
    for top_k in TOP_KS:
        mass = float(ordered_NC[:, :-top_k].sum(axis=1).mean())
        size = stored_bytes(logits_NC, top_k)
        encoding = SparseEncoding(logits_NC.shape[1], top_k)
        losses = measure_fidelity(encoding, log_probs_NC[:MEASURED]).losses
        truncated = " / ".join(f"{losses[t].truncation:.4f}" for t in TEMPERATURES)
        coded = " / ".join(f"{losses[t].coding:.1e}" for t in TEMPERATURES)
        record = 4 * top_k + 4
        found.append(
            f"| {name} | {top:.2f} | {top_k} | {mass:.3f} | {size:.1f} "
            f"| {size / record:.2f} | {truncated} | {coded} |"
        )
    return found


def real_logits(path: str, teacher: str) -> NDArray[np.float32]:
    """Return the log-probabilities of all views of a teacher, one view after another.

    They are logits too, and as good as any: what is added to all of a row changes nothing.
    """
    cache = open_cache(path)
    group = cache.teacher(teacher)
    if not isinstance(group.encoding, DenseEncoding):
        raise SystemExit(f"teacher {teacher!r} is not dense: nothing to compare with")
    rows, readable = cache.manifest.capacity, cache.samples.readable
    views = [cache.read(teacher, view, 0, rows) for view in group.view_ids]
    parts = [group.encoding.decode(arrays).log_probs[readable] for arrays in views]
    return np.concatenate(parts).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cache", help="a cache with dense targets")
    arguments = parser.parse_args()
    cache = open_cache(arguments.cache)
    print("| logits | top | K | mass | B a row | of 4K+4 | KL by K, T = 1/2/4 | by coding |")
    print("|---|---|---|---|---|---|---|---|")
    for teacher in cache.teachers:
        logits_NC = real_logits(arguments.cache, teacher)
        print("\n".join(lines(teacher, logits_NC)), flush=True)
    rows, classes = logits_NC.shape
    count = -(-rows // 8192)
    blocks = [teacher_logits(8192, classes, seed) for seed in range(count)]
    print("\n".join(lines("synthetic", np.concatenate(blocks)[:rows])))


if __name__ == "__main__":
    main()
