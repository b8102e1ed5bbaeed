"""Caches of one teacher to read targets from, and how the loader reads them: in one place."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from logitcache.batch import SparseLogits
from logitcache.cache.format.names import default_unit_rows
from logitcache.encoding.sparse import SparseEncoding
from logitcache.targets.epochs.order import Window, epoch_windows
from logitcache.targets.epochs.prefetch import ReadAhead
from logitcache.targets.images.row_ids import AllRows
from logitcache.targets.reader import TargetsReader
from logitcache.targets.selection import DEFAULT_TARGET_MEMORY
from logitcache.views.spec import parse_view
from tests.benchmarks.logits import CLASSES, logits_of_rows
from tests.cache.building import (
    VIEW,
    declare,
    encode,
    group_of,
    samples_of,
    start_cache,
    write_samples,
    write_teacher,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from logitcache.cache.read.reader import Cache
    from logitcache.encoding.arrays import Encoded
    from logitcache.encoding.kinds import Encoding
    from logitcache.targets.reader import TargetWindow

__all__ = [
    "ENCODING",
    "epoch_order",
    "gather",
    "make_cache",
    "repeated",
    "walk",
    "whole",
]

ENCODING = SparseEncoding.new(CLASSES, top_k=50, bits=5)  # the default of new caches
_TEACHER = "t"
_DISTINCT = 8192  # rows of logits; more are these over and over


def repeated(rows: int, encoding: Encoding = ENCODING) -> Encoded:
    """Return what a cache of that many rows holds."""
    logits_NC = logits_of_rows(min(rows, _DISTINCT))
    samples = samples_of(len(logits_NC), unit=len(logits_NC))
    few = encode(group_of(_TEACHER, encoding), logits_NC, samples)
    return {name: np.resize(array, (rows, *array.shape[1:])) for name, array in few.items()}


def make_cache(path: Path, encoded: Encoded, samples: Encoded) -> None:
    """Write and seal a cache of one view; rows are whole units."""
    rows = len(samples["key"])
    unit = default_unit_rows(rows)
    writer = start_cache(path, rows, unit=unit)
    group = declare(writer, _TEACHER, ENCODING, unit)
    write_samples(writer, samples)
    write_teacher(writer, group, encoded)
    writer.seal("fingerprint", {})


def whole(cache: Cache) -> TargetWindow:
    """Read all of the view."""
    reader = TargetsReader(cache, [_TEACHER])
    units = tuple(range(cache.manifest.capacity // reader.unit_rows))
    return reader.read(parse_view(cache.views[VIEW], VIEW), units, reader.unit_rows)


def gather(window: TargetWindow, rows_B: NDArray[np.int64]) -> SparseLogits:
    """Decode a batch."""
    answers = window.gather(rows_B).teachers[_TEACHER]
    assert isinstance(answers, SparseLogits)
    return answers


def epoch_order(cache: Cache, epoch: int = 0) -> list[Window]:
    """Return the windows of an epoch: one, as the default memory allows."""
    reader = TargetsReader(cache, [_TEACHER])
    rows, unit = cache.manifest.rows, reader.unit_rows
    assert 3 * rows * reader.row_bytes < DEFAULT_TARGET_MEMORY
    windows = epoch_windows(
        AllRows(rows), seed=0, epoch=epoch, unit_rows=unit, window_units=-(-rows // unit)
    )
    return list(windows)


def walk(cache: Cache, windows: list[Window], batch: int) -> Iterator[SparseLogits]:
    """Yield the targets of an epoch in batches, the next window read by a thread meanwhile."""
    reader = TargetsReader(cache, [_TEACHER])
    view = parse_view(cache.views[VIEW], VIEW)
    with ThreadPoolExecutor(1) as thread:
        reading = ReadAhead(
            windows, lambda window: reader.read(view, window.units, reader.unit_rows), thread
        )
        for window, read in reading.walk():
            for start in range(0, len(window.rows), batch):
                yield gather(read, window.rows[start : start + batch])
