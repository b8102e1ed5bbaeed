from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from logitcache.cache.claims import Claims
from logitcache.cache.location import locate
from logitcache.errors import StorageError

if TYPE_CHECKING:
    from pathlib import Path


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def write_claim(root: Path, name: str, *, host: str, pid: int, age: float = 0.0) -> Path:
    path = root / f"claims/{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"host": host, "pid": pid, "token": "theirs"}))
    then = time.time() - age
    os.utime(path, (then, then))
    return path


def test_one_of_two_has_a_claim_and_leaves_nothing(tmp_path: Path) -> None:
    ours, theirs = Claims(locate(tmp_path / "c")), Claims(locate(tmp_path / "c"))
    with ours.claimed("v0-1") as won, theirs.claimed("v0-1") as lost, theirs.claimed("v0-2") as too:
        assert (won, lost, too) == (True, False, True)
        holder = json.loads((tmp_path / "c/claims/v0-1.json").read_bytes())
        assert (holder["host"], holder["pid"]) == (socket.gethostname(), os.getpid())
    with theirs.claimed("v0-1") as now:
        assert now
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("host", "pid", "age", "taken"),
    [
        ("here", "dead", 0, True),
        ("here", "alive", 10_000, False),
        ("elsewhere", "alive", 10, False),
        ("elsewhere", "alive", 10_000, True),
    ],
)
def test_a_claim_is_taken_over_when_its_holder_is_gone(
    tmp_path: Path, host: str, pid: str, age: float, taken: bool
) -> None:
    name = socket.gethostname() if host == "here" else "another-host"
    number = dead_process() if pid == "dead" else os.getppid()
    write_claim(tmp_path, "v0-1", host=name, pid=number, age=age)
    with Claims(locate(tmp_path)).claimed("v0-1") as won:
        assert won is taken
    assert (tmp_path / "claims").exists() is not taken


def test_a_half_written_claim_is_respected_until_it_is_old(tmp_path: Path) -> None:
    path = write_claim(tmp_path, "v0-1", host="x", pid=1)
    path.write_text('{"host": "x')
    with Claims(locate(tmp_path)).claimed("v0-1") as won:
        assert not won
    os.utime(path, (0, 0))
    with Claims(locate(tmp_path)).claimed("v0-1") as won:
        assert won


def test_a_heartbeat_keeps_a_claim(tmp_path: Path) -> None:
    ours = Claims(locate(tmp_path), stale_seconds=0.0)
    with ours.claimed("v0-1"):
        path = tmp_path / "claims/v0-1.json"
        os.utime(path, (0, 0))
        ours.beat()
        assert time.time() - path.stat().st_mtime < 60
        path.unlink()
        ours.beat()


def test_waiting_for_the_manifest_ends(tmp_path: Path) -> None:
    write_claim(tmp_path, "manifest", host=socket.gethostname(), pid=os.getppid())
    claims = Claims(locate(tmp_path), stale_seconds=0.05)
    with pytest.raises(StorageError, match="another run"), claims.exclusive("manifest"):
        pytest.fail("it was somebody else's")


def test_litter_of_dead_writers_is_swept(tmp_path: Path) -> None:
    location = locate(tmp_path)
    host = "".join(c if c.isalnum() else "-" for c in socket.gethostname())[:40]
    fresh = tmp_path / f"a.json.{host}_{os.getpid()}_ab.partial"
    dead = tmp_path / f"b.json.{host}_{dead_process()}_ab.partial"
    foreign, old = tmp_path / "c.json.other_1_ab.partial", tmp_path / "d.json.other_1_ab.partial"
    for path in (fresh, dead, foreign, old):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    assert sorted(location.sweep()) == [dead.name, old.name]
    assert fresh.exists()
    assert foreign.exists()
