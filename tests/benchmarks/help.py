"""How long ``logitcache --help`` takes, as a process."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from tests.benchmarks.measuring import Measurement


def measure() -> list[Measurement]:
    """Return the seconds of a whole process."""
    times = []
    for _ in range(9):
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "logitcache", "--help"], capture_output=True, check=True
        )
        times.append(time.perf_counter() - start)
    low, median, high = statistics.quantiles(times, n=4)
    return [Measurement("logitcache --help", median, "s", low, high, target=0.5)]
