"""Run benchmarks and print their rows: ``python -m tests.benchmarks loss involution``."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import resource
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tests.benchmarks.logits import VARIABLE

if TYPE_CHECKING:
    from tests.benchmarks.measuring import Measurement

NAMES = (
    "accelerator",
    "cluster",
    "coding",
    "damage",
    "decode_once",
    "encoding",
    "features",
    "feeding",
    "help",
    "involution",
    "loss",
    "map_style",
    "memory",
    "opening",
    "packed_images",
    "precompute",
    "ranks",
    "remote",
    "scaling",
    "sharing",
    "storage",
    "students",
    "tails",
    "targets",
    "transform_loss",
    "view_rates",
)


def markdown(rows: list[Measurement]) -> str:
    """Return a table for ``docs/benchmarks.md``."""
    lines = ["| what | value | quartiles | bound | met | |", "|---|---|---|---|---|---|"]
    for row in rows:
        spread = "" if row.low is None else f"{row.low:.2f} .. {row.high:.2f}"
        sign = "≤" if row.at_most else "≥"
        bound = "" if row.target is None else f"{sign} {row.target:g}"
        met = {None: "", True: "yes", False: "**no**"}[row.met]
        lines.append(
            f"| {row.name} | {row.value:.3g} {row.unit} | {spread} | {bound} | {met} | {row.note} |"
        )
    return "\n".join(lines)


def processor_time() -> float:
    """Return seconds of this process, and of the children that it has waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--logits", type=Path, help="of a real classifier, see imagenet_logits")
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="measure it instead of wall time, as on a machine with other work",
    )
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    names = NAMES if arguments.all else tuple(arguments.names)
    if not names or set(names) - set(NAMES):
        parser.error(f"give some of {', '.join(NAMES)}, or --all")
    torch.set_num_threads(arguments.threads)
    if arguments.logits is not None:
        os.environ[VARIABLE] = str(arguments.logits)
    if arguments.processor_time:
        time.perf_counter = processor_time  # before benchmarks are imported
    modules = [importlib.import_module(f"tests.benchmarks.{name}") for name in names]
    rows = [row for module in modules for row in module.measure()]
    if arguments.json:
        print(json.dumps([row.to_json() for row in rows], indent=2))
        return
    print(f"torch {torch.__version__}, {arguments.threads} threads, {platform.machine()}\n")
    print(markdown(rows))


if __name__ == "__main__":
    main()
