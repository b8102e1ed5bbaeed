"""Run all pipelines of ``pipelines/full`` on a few images, for two steps a training.

``python -m tests.matrix.full [NAME...]`` runs the named ones, such as ``full/nkd``; all by default.
It takes some minutes and, for the largest teacher, 4 GB of memory.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import torch

from logitcache.cli.interrupt import StopRequest
from logitcache.cli.stages import stage_runner
from tests.full_pipelines import FULL, few_images


def main(names: list[str]) -> int:
    """Run pipelines, print a line for each, and return the exit code."""
    torch.set_num_threads(2)
    failed = 0
    for name in names or FULL:
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder, StopRequest() as stop:
            try:
                results = few_images(name, Path(folder)).run(stage_runner(stop))
                outcome = f"{len(results)} stages"
            except Exception as error:  # the others run nevertheless
                outcome = f"failed: {type(error).__name__}: {error}"
                failed += 1
        print(f"{name}: {outcome}, {time.perf_counter() - started:.0f} s", flush=True)
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
