"""Kill stage 1 with SIGKILL as it writes an object, resume, compare.

``python -m tests.precompute.killing FOLDER [STRIDE]`` kills at every object, or at every
STRIDE-th. It runs in a process without torch, one fork per kill, and prints one JSON document.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from logitcache.cache.location import LocalLocation
from tests.precompute import null

TEACHERS = {"coarse": null.UNIT, "fine": null.UNIT // 4}


def snapshot(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def in_a_child(path: Path, kill_at: int | None) -> tuple[int, int]:
    """Run in a fork; return its status and how many objects it wrote before it ended."""
    counter = path.with_suffix(".count")
    child = os.fork()
    if child == 0:
        write, written = LocalLocation.write, 0

        def counting(self: LocalLocation, key: str, content: bytes | memoryview) -> None:
            nonlocal written
            if kill_at is not None and written >= kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            write(self, key, content)
            written += 1

        LocalLocation.write = counting  # type: ignore[method-assign]
        null.run(path, TEACHERS)
        counter.write_text(str(written))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return status, int(counter.read_text()) if counter.exists() else -1


def committed(root: Path) -> dict[str, int]:
    """Return when each object was last written, of every unit that has a commit."""
    times = {}
    for path in (root / "commits").rglob("*.json"):
        keys = [array["key"] for array in json.loads(path.read_bytes())["arrays"].values()]
        for found in (path, *(root / key for key in keys)):
            times[str(found)] = found.stat().st_mtime_ns
    return times


def main(folder: Path, stride: int) -> None:
    _, writes = in_a_child(folder / "whole", None)
    expected = snapshot(folder / "whole")
    failures, moments = [], range(0, writes, stride)
    for kill_at in moments:
        path = folder / f"killed-{kill_at}"
        status, _ = in_a_child(path, kill_at)
        assert os.WIFSIGNALED(status), f"not killed at {kill_at}: {status}"
        kept = committed(path) if path.exists() else {}
        status, _ = in_a_child(path, None)
        got = {n: c for n, c in snapshot(path).items() if not n.endswith(".partial")}
        if status != 0 or got != expected:
            failures.append(
                [kill_at, "differs", sorted(n for n in got if got[n] != expected.get(n))]
            )
        if any(Path(name).stat().st_mtime_ns != time for name, time in kept.items()):
            failures.append([kill_at, "rewrote a committed unit"])
    print(
        json.dumps(
            {
                "writes": writes,
                "kills": len(moments),
                "failures": failures,
                "torch": "torch" in sys.modules,
            }
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1)
