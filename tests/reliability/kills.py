"""Kill at random moments, re-run the same command, compare with the uninterrupted run."""

from __future__ import annotations

import json
import os
import random
import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from logitcache.cache.read.reader import Cache, open_cache
from logitcache.cache.verify.integrity import verify
from tests.precompute import null
from tests.reliability.moments import STAGES, in_a_child

if TYPE_CHECKING:
    from pathlib import Path

_AT_LEAST = ("encode", "store write", "commit", "seal", "top-up", "added teacher")


@dataclass
class Kills:
    """What came of a number of kills."""

    moments: int
    units: int
    by_kind: Counter[str] = field(default_factory=Counter)
    by_stage: Counter[str] = field(default_factory=Counter)
    failures: list[list[Any]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {
            "moments": self.moments,
            "units": self.units,
            "kills": sum(self.by_stage.values()),
            "by_stage": dict(self.by_stage),
            "by_kind": dict(sorted(self.by_kind.items())),
            "failures": self.failures,
            "torch": "torch" in sys.modules,
        }


def kill_null_runs(folder: Path, count: int, seed: int) -> dict[str, Any]:
    """Kill ``count`` times; return what came of it as JSON values."""
    return kill_at_random_moments(folder, count, seed).to_json()


def kill_at_random_moments(folder: Path, count: int, seed: int) -> Kills:
    """Kill ``count`` times, each time in a cache of its own."""
    whole = folder / "whole"
    status, log = in_a_child(whole, STAGES[0], None)
    assert status == 0, "the uninterrupted run failed"
    moments: list[str] = json.loads(log.read_text())["moments"]
    expected = snapshot(whole)
    kills = Kills(len(moments), sum(1 for _ in (whole / "commits").rglob("*.json")))
    for kill_at in _drawn(moments, count, seed):
        path = folder / f"killed-{kill_at}"
        status, log = in_a_child(path, STAGES[0], kill_at)
        assert os.WIFSIGNALED(status), f"not killed at {kill_at}: {status}"
        died = json.loads(log.read_text())
        kills.by_stage[died["stage"]] += 1
        kills.by_kind[died["moment"]] += 1
        kept = committed(path)
        status, log = in_a_child(path, died["stage"], None)
        problems = _problems(path, whole, expected, kept, log) if status == 0 else ["not resumed"]
        kills.failures += [[kill_at, moments[kill_at], problem] for problem in problems]
    return kills


def _drawn(moments: list[str], count: int, seed: int) -> list[int]:
    """Draw moments: a tenth of them from each kind that must not be left out, the rest freely."""
    generator = random.Random(seed)
    drawn: set[int] = set()
    for kind in _AT_LEAST:
        of_kind = [number for number, moment in enumerate(moments) if kind in moment]
        drawn |= set(generator.sample(of_kind, max(1, count // 10)))
    rest = [number for number in range(len(moments)) if number not in drawn]
    drawn |= set(generator.sample(rest, max(0, count - len(drawn))))
    return sorted(drawn)


def snapshot(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def committed(root: Path) -> dict[str, tuple[int, int]]:
    """Return time and inode of each object of every unit that has a commit."""
    stamps = {}
    for path in (root / "commits").rglob("*.json"):
        keys = [array["key"] for array in json.loads(path.read_bytes())["arrays"].values()]
        for found in (path, *(root / key for key in keys)):
            stamps[str(found)] = (found.stat().st_mtime_ns, found.stat().st_ino)
    return stamps


def _problems(
    path: Path,
    whole: Path,
    expected: dict[str, bytes],
    kept: dict[str, tuple[int, int]],
    log: Path,
) -> list[str]:
    found = []
    after = committed(path)
    if any(after.get(name) != stamp for name, stamp in kept.items()):
        found.append("a committed unit was rewritten")
    requested = {_unit_of(path, *question) for question in json.loads(log.read_text())["requested"]}
    if any(str(unit) in kept for unit in requested):
        found.append("a committed unit was computed again")
    got = snapshot(path)
    if got != expected:
        names = sorted(n for n in got.keys() | expected.keys() if got.get(n) != expected.get(n))
        found.append(f"differs: {names[:5]}")
    report = verify(path)
    if not report.ok or report.orphans:
        found.append(f"verify: {report.faults[:3]} {report.orphans[:3]}")
    if not same_arrays(open_cache(path), open_cache(whole)):
        found.append("arrays differ")
    return found


def _unit_of(root: Path, row: int, view: int, teacher: str) -> Path:
    """Return the commit that an answer belongs to."""
    unit_rows = null.UNIT // 4 if teacher == "fine" else null.UNIT
    return root / "commits/teachers" / teacher / null.VIEWS[view] / f"{row // unit_rows}.json"


def same_arrays(ours: Cache, theirs: Cache) -> bool:
    end = ours.revision.rows_end
    same = np.array_equal(ours.samples.keys, theirs.samples.keys)
    for name in theirs.teachers:
        for view in theirs.views_of([name]):
            a, b = ours.read(name, view, 0, end), theirs.read(name, view, 0, end)
            same = same and all(np.array_equal(a[n], b[n], equal_nan=True) for n in b)
    return same
