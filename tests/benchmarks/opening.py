"""How long a cache of ImageNet-1k's size takes to open: 1.28M rows, 300 views.

The manifest, the ledger of every view and the revision over them are real, and a unit is read back
before anything is timed; see :mod:`tests.benchmarks.simulated`. ``open_cache`` alone, and until the
teachers' groups and the views of all of them are known, in a process that has imported everything.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from logitcache.cache.read.reader import Cache, open_cache
from tests.benchmarks.measuring import Measurement
from tests.benchmarks.reading import repeated
from tests.benchmarks.simulated import simulate

if TYPE_CHECKING:
    from collections.abc import Callable

ROWS, VIEWS, TIMES = 1_281_167, 300, 51


def _known(path: Path) -> Cache:
    """Open a cache as a training does, up to the list of its views."""
    cache = open_cache(path)
    assert len(cache.views) == VIEWS
    return cache


def _row(name: str, action: Callable[[], object], target: float | None) -> Measurement:
    times = []
    for _ in range(TIMES):
        start = time.perf_counter()
        action()
        times.append(1e3 * (time.perf_counter() - start))
    low, median, high = statistics.quantiles(times, n=4)
    return Measurement(name, median, "ms", low, high, target)


def measure() -> list[Measurement]:
    """Return the milliseconds of opening."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "c"
        writer = simulate(path, ROWS, VIEWS)
        cache = _known(path)
        (group,) = cache.teachers.values()
        written = repeated(group.unit_rows)
        found = cache.read(group.name, group.view_ids[0], 0, group.unit_rows)
        assert all(np.array_equal(found[n], written[n], equal_nan=True) for n in written)
        ledgers = writer.location.bytes_below("ledger")
        note = f"{ledgers / 2**20:.0f} MiB of ledgers are left alone until a view is read"
        name = "open a cache of 1.28M rows and 300 views"
        opened = _row(name, lambda: open_cache(path), 100.0)
        known = _row(f"{name}, with its teachers and views", lambda: _known(path), None)
    return [Measurement(**{**vars(opened), "note": note}), known]
