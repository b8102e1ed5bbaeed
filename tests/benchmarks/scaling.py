"""What a row costs to write and to read when there are ten and a hundred times as many.

The samples and one view of one teacher (K = 50 of C = 1000), units as logitcache chooses them, all
fsyncs and digests included. The smaller sets are written as often as makes up for their size, and
the median counts; the last rows say how much dearer a row is at 10^6 than at 10^4.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from logitcache.cache.format.names import default_unit_rows
from logitcache.cache.read.reader import open_cache
from tests.benchmarks.measuring import Measurement
from tests.benchmarks.reading import ENCODING, repeated, whole
from tests.cache.building import (
    declare,
    samples_of,
    start_cache,
    write_samples,
    write_teacher,
)

if TYPE_CHECKING:
    from logitcache.encoding.arrays import Encoded

TIMES = {10_000: 9, 100_000: 5, 1_000_000: 3}
BOUND = 1.25


def costs(rows: int, samples: Encoded, encoded: Encoded) -> dict[str, float]:
    """Return the seconds that each part of writing and reading a cache of some rows takes."""
    unit = default_unit_rows(rows)
    capacity = len(samples["key"])
    seconds: dict[str, float] = {}
    clock = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal clock
        seconds[name] = time.perf_counter() - clock
        clock = time.perf_counter()

    with tempfile.TemporaryDirectory() as folder:
        writer = start_cache(Path(folder) / "c", rows, unit=unit)
        group = declare(writer, "t", ENCODING, unit)
        answers = {name: array[:capacity] for name, array in encoded.items()}
        lap("nothing")
        write_samples(writer, samples)
        lap("write samples")
        write_teacher(writer, group, answers)
        writer.seal("fingerprint", {})
        lap("write a view and seal")
        cache = open_cache(Path(folder) / "c")
        whole(cache)
        lap("open and read a view")
        assert len(cache.samples.keys) == rows
        lap("read samples")
    del seconds["nothing"]
    return seconds


def measure() -> list[Measurement]:
    """Return microseconds a row, and how they grow."""
    encoded = repeated(max(TIMES) + default_unit_rows(max(TIMES)))
    measured: dict[int, dict[str, list[float]]] = {}
    for rows, times in TIMES.items():
        samples = samples_of(rows, unit=default_unit_rows(rows))
        runs = [costs(rows, samples, encoded) for _ in range(times)]
        measured[rows] = {n: [1e6 * run[n] / rows for run in runs] for n in runs[0]}
    return [*_per_row(measured), *_growth(measured)]


def _per_row(measured: dict[int, dict[str, list[float]]]) -> list[Measurement]:
    return [
        Measurement(
            f"{name}, {rows:,} rows", statistics.median(found), "us a row", min(found), max(found)
        )
        for rows, parts in measured.items()
        for name, found in parts.items()
    ]


def _growth(measured: dict[int, dict[str, list[float]]]) -> list[Measurement]:
    few, many = measured[min(measured)], measured[max(measured)]
    return [
        Measurement(
            f"{name}: a row of {max(measured):,} against one of {min(measured):,}",
            statistics.median(many[name]) / statistics.median(few[name]),
            "x",
            min(many[name]) / max(few[name]),
            max(many[name]) / min(few[name]),
            BOUND,
            note="spread: all that the runs allow",
        )
        for name in few
    ]
