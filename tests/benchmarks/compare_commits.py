"""Benchmarks of two checkouts in turns, by processor time, as one table.

Each side runs its own benchmarks on its own package, a process for each, with the same
interpreter. The clock is the processor time of the process and of the children that it has waited
for, which depends on other work of a machine much less than wall time does::

    git worktree add ../before COMMIT
    python -m tests.benchmarks.compare_commits ../before opening targets --rounds 3 --out results
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RUN = """
import resource, sys, time
def clock():
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime
time.perf_counter = clock
from tests.benchmarks.__main__ import main
main()
"""
SIDES = ("before", "now")
Rows = dict[str, dict[str, list[dict[str, Any]]]]


def run(checkout: Path, name: str, file: Path) -> None:
    """Write the rows of a benchmark of a checkout, with the load before and after."""
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    load = os.getloadavg()[0]
    command = [sys.executable, "-c", RUN, name, "--json", "--threads", "1"]
    done = subprocess.run(
        command, cwd=checkout, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    file.write_text(done.stdout)
    print(f"{file.name}: load {load:.1f}, then {os.getloadavg()[0]:.1f}", flush=True)


def rows_of(folder: Path) -> Rows:
    """Return the rows of all runs by name and side."""
    found: Rows = {}
    for file in sorted(folder.glob("*.json")):
        side = file.name.split(".")[1]
        for row in json.loads(file.read_text()):
            found.setdefault(row["name"], {each: [] for each in SIDES})[side].append(row)
    return found


def cell(rows: list[dict[str, Any]]) -> str:
    """Return the median over the runs, the range of their quartiles, and whether it is met."""
    if not rows:
        return "-"
    value = statistics.median(row["value"] for row in rows)
    ends = [row[end] for row in rows for end in ("low", "high") if row[end] is not None]
    spread = f" ({min(ends):.3g} to {max(ends):.3g})" if ends else ""
    bound, unit = rows[0]["target"], rows[0]["unit"].strip()
    met = bound is None or (value <= bound if rows[0]["at_most"] else value >= bound)
    return f"{value:.3g} {unit}{spread}{'' if met else ', **missed**'}"


def table(rows: Rows) -> str:
    lines = ["| what | bound | before | now |", "|---|---|---|---|"]
    for name, sides in rows.items():
        first = (sides["now"] or sides["before"])[0]
        sign = "≤" if first["at_most"] else "≥"
        bound = "" if first["target"] is None else f"{sign} {first['target']:g}"
        lines.append(f"| {name} | {bound} | {cell(sides['before'])} | {cell(sides['now'])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("before", type=Path, help="a checkout of the other commit")
    parser.add_argument("names", nargs="*", help="benchmarks; none to print what is in --out")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    checkouts = dict(zip(SIDES, (arguments.before.resolve(), ROOT), strict=True))
    for number in range(arguments.rounds):
        for name in arguments.names:
            for side in SIDES[:: -1 if number % 2 else 1]:
                run(checkouts[side], name, arguments.out / f"{name}.{side}.{number}.json")
    print(table(rows_of(arguments.out)))


if __name__ == "__main__":
    main()
