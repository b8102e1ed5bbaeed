"""Claims: who has one, who loses it and when, and what is left of those who were killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logitcache.cache.store import temporary
from logitcache.cache.store.open import locate
from logitcache.cache.verify.orphans import find_orphans
from logitcache.cache.write.claim_holder import Holder, new_token
from logitcache.cache.write.claims import MANIFEST, Claims, Wait
from logitcache.cache.write.unchanged import Unchanged
from logitcache.errors import StorageError

if TYPE_CHECKING:
    from pathlib import Path


class Clock:
    """A clock that is advanced by hand, or by a step at every reading."""

    def __init__(self, step: float = 0.0) -> None:
        self.now, self.step = 1000.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


class Machine:
    """This process among others, as :mod:`logitcache.platforms` shows it."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.patch, self.pid = patch, 1
        self.host, self.boot, self.namespace = "container", "id:first", "pid:1"
        self.running: dict[int, float] = {1: 10.0}
        for module in ("logitcache.cache.write.claim_holder", "logitcache.cache.store.temporary"):
            patch.setattr(f"{module}.boot_identity", lambda: self.boot)
            patch.setattr(f"{module}.process_namespace", lambda: self.namespace)
            patch.setattr(f"{module}.process_started", self.running.get)
        patch.setattr("os.getpid", lambda: self.pid)
        patch.setattr("socket.gethostname", lambda: self.host)

    def restart_process(self, started: float) -> None:
        """Go on as another process, which has other tokens."""
        self.patch.setattr("logitcache.cache.write.claim_holder._PROCESS", f"process of {started}")
        self.running[self.pid] = started


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def write_claim(root: Path, name: str, content: dict[str, Any] | bytes) -> Path:
    path = root / f"claims/{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def claim_of_this_machine(**fields: Any) -> dict[str, Any]:
    """Return the claim of another process of this machine; None leaves a field out."""
    ours = Holder.this_process("another token").to_json()
    return {name: value for name, value in {**ours, **fields}.items() if value is not None}


def look(claims: Claims, name: str = "v0-1") -> bool:
    """Try to get a claim."""
    with claims.claimed(name) as won:
        return won


def test_one_of_two_has_a_claim_and_leaves_nothing(tmp_path: Path) -> None:
    ours, theirs = Claims(locate(tmp_path / "c")), Claims(locate(tmp_path / "c"))
    with ours.claimed("v0-1") as won, theirs.claimed("v0-1") as lost, theirs.claimed("v0-2") as too:
        assert (won, lost, too) == (True, False, True)
        holder = json.loads((tmp_path / "c/claims/v0-1.json").read_bytes())
        assert (holder["host"], holder["pid"]) == (socket.gethostname(), os.getpid())
        assert holder.keys() == {
            *("host", "pid", "token", "boot", "namespace", "started", "locked")
        }
    with theirs.claimed("v0-1") as now:
        assert now
    assert not (tmp_path / "c").exists()


def test_a_claim_left_by_process_1_of_a_container_is_taken_over_at_once(
    machine: Machine, tmp_path: Path
) -> None:
    killed = Claims(locate(tmp_path))
    context = killed.claimed("v0-1")
    assert context.__enter__()
    killed._stop.set()  # SIGKILL ends its thread as well
    assert not look(Claims(locate(tmp_path))), "of the same process"
    machine.restart_process(started=99.0)
    assert look(Claims(locate(tmp_path)))


@pytest.mark.parametrize(
    ("fields", "ended"),
    [
        ({"pid": 7}, True),  # no such process
        ({"pid": 5, "started": 50.0}, False),  # it runs
        ({"pid": 5, "started": 49.0}, True),  # the number was given to another process
        ({"pid": 5, "started": None}, False),
        ({"pid": 1}, True),  # our own number, and a token of another process
        ({"pid": 7, "boot": "id:second"}, True),
        ({"pid": 5, "boot": "id:second"}, True),
        ({"pid": 7, "boot": "time:100"}, False),  # of another kind: nothing is known
        ({"pid": 7, "boot": None}, False),
        ({"pid": 7, "namespace": "pid:2"}, False),
        ({"pid": 7, "namespace": None}, False),
        ({"pid": 7, "host": "another"}, False),
        ({"pid": 7, "host": "another", "boot": "id:second"}, False),
        ({"pid": None}, False),
    ],
)
def test_a_claim_of_a_process_that_has_ended_is_stale_at_once(
    machine: Machine, tmp_path: Path, fields: dict[str, Any], ended: bool
) -> None:
    machine.running[5] = 50.0
    write_claim(tmp_path, "v0-1", claim_of_this_machine(**fields))
    assert look(Claims(locate(tmp_path))) is ended


@pytest.mark.parametrize(("boot", "ended"), [("time:1000", False), ("time:1200", True)])
def test_the_time_of_a_boot_may_differ_by_what_setting_a_clock_changes(
    machine: Machine, boot: str, ended: bool
) -> None:
    machine.running[5], machine.boot = 50.0, "time:1030"
    content = json.dumps(claim_of_this_machine(pid=5, started=50.0, boot=boot))
    assert Holder.parse(content.encode()).has_ended is ended


def test_a_process_that_may_not_be_looked_at_keeps_its_claim(
    machine: Machine, tmp_path: Path
) -> None:
    def refused(pid: int) -> float:
        if pid == 5:
            raise PermissionError
        return 10.0

    machine.patch.setattr("logitcache.cache.write.claim_holder.process_started", refused)
    write_claim(tmp_path, "v0-1", claim_of_this_machine(pid=5))
    assert not look(Claims(locate(tmp_path)))


def test_real_processes_are_looked_up(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    write_claim(tmp_path, "v0-1", claim_of_this_machine(pid=child.pid))
    assert look(Claims(locate(tmp_path)))
    write_claim(tmp_path, "v0-1", claim_of_this_machine(pid=os.getppid(), started=None))
    assert not look(Claims(locate(tmp_path)))


def test_tokens_are_those_of_a_process(machine: Machine) -> None:
    token = new_token()
    assert not Holder.this_process(token).has_ended
    machine.restart_process(started=99.0)
    assert Holder.this_process(token).has_ended


def test_only_what_this_process_has_seen_makes_a_claim_of_another_host_stale(
    tmp_path: Path,
) -> None:
    """Times of other clocks do not count: neither old ones nor those of the future."""
    clock = Clock()
    claims = Claims(locate(tmp_path), clock=clock)
    path = write_claim(tmp_path, "v0-1", claim_of_this_machine(host="another"))
    for modified in (0.0, time.time() + 1e6):
        os.utime(path, (modified, modified))
        for _ in range(5):  # 0, 30, ... 120 s without a change
            assert not look(claims)
            clock.now += 30
    assert look(claims), "more than 120 s"


def test_a_heartbeat_keeps_a_claim(tmp_path: Path) -> None:
    clock = Clock()
    claims = Claims(locate(tmp_path), clock=clock)
    path = write_claim(tmp_path, "v0-1", claim_of_this_machine(host="another"))
    for second in range(0, 1000, 20):
        os.utime(path, (second, second))
        assert not look(claims)
        clock.now += 20


def test_an_existing_process_without_a_heartbeat_loses_its_claim(
    machine: Machine, tmp_path: Path
) -> None:
    machine.running[5] = 50.0
    clock = Clock()
    claims = Claims(locate(tmp_path), clock=clock)
    write_claim(tmp_path, "v0-1", claim_of_this_machine(pid=5, started=50.0))
    looks = 0
    while not look(claims):
        clock.now += 10
        looks += 1
    assert looks == 13


def test_time_in_which_the_waiting_process_was_stopped_does_not_count() -> None:
    clock = Clock()
    unchanged = Unchanged(30.0, clock)
    assert unchanged.seconds("a", 1) == 0
    clock.now += 10_000
    assert unchanged.seconds("a", 1) == 30
    clock.now += 20
    assert unchanged.seconds("a", 1) == 50
    assert unchanged.seconds("a", 2) == 0
    unchanged.forget("a")
    assert unchanged.seconds("a", 2) == 0


HOLD = """
import sys, time
from logitcache.cache.write.claims import Claims
from logitcache.cache.store.open import locate
with Claims(locate(sys.argv[1]), stale_seconds=0.4).claimed("v0-1") as won:
    print(won, flush=True)
    time.sleep(600)
"""


def test_a_process_that_is_stopped_loses_its_claim_and_one_that_runs_keeps_it(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "True\n"
    path = tmp_path / "claims/v0-1.json"
    try:
        seen = path.stat().st_mtime_ns
        until = time.monotonic() + 60
        while path.stat().st_mtime_ns == seen:
            assert time.monotonic() < until, "it touches its claim every 50 ms"
            time.sleep(0.01)
        assert not look(Claims(locate(tmp_path)))
        holder.send_signal(signal.SIGSTOP)
        claims = Claims(locate(tmp_path), stale_seconds=0.4)
        while not look(claims):
            assert time.monotonic() < until
            time.sleep(0.02)
    finally:
        holder.kill()
        holder.communicate()


def test_the_end_of_a_process_of_another_container_is_known_by_its_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "True\n"
    monkeypatch.setattr(
        "logitcache.cache.write.claim_holder.process_namespace", lambda: "pid:another"
    )
    monkeypatch.setattr("socket.gethostname", lambda: "another")
    assert not look(Claims(locate(tmp_path)))
    holder.kill()
    holder.communicate()
    with monkeypatch.context() as patch:
        patch.setattr("logitcache.cache.write.claim_holder.boot_identity", lambda: "id:another")
        assert not look(Claims(locate(tmp_path)))
    with monkeypatch.context() as patch:
        patch.setattr("logitcache.platforms.fcntl", None)
        assert not look(Claims(locate(tmp_path))), "where files cannot be locked"
    assert look(Claims(locate(tmp_path)))


def test_a_claim_that_was_taken_over_is_neither_touched_nor_removed_by_its_old_holder(
    tmp_path: Path,
) -> None:
    ours = Claims(locate(tmp_path), stale_seconds=0.1)
    with ours.claimed("v0-1"):
        path = write_claim(tmp_path, "v0-1", claim_of_this_machine(host="another"))
        os.utime(path, (0, 0))
        time.sleep(0.1)
        assert path.stat().st_mtime == 0
    assert path.exists()


VALUES = (0, -1, -(2**70), 2**70, "HUGE", 1e300, True, None, "1", [1], {"a": 1})
ODD: list[bytes] = [
    b"",
    b"{",
    b"null",
    b"[]",
    b"7",
    b"\xff\xfe",
    rb'"\ud800"',
    b"[" * 4096,
    b"x" * 4097,
    b"{" * 10**6,
    rb'{"host": "\ud800", "pid": 1}',
    rb'{"host": "\u001b[2J", "pid": 1}',
    b'{"host": ["HOST"], "pid": {}}',
    b'{"host": "HOST", "pid": 1e999, "started": NaN}',
    b'{"host": "HOST", "pid": 1, "started": -Infinity, "boot": "time:999999999999999999"}',
    *(
        json.dumps({"host": "HOST", "pid": v, "started": v, "boot": v, "namespace": v})
        .encode()
        .replace(b'"HUGE"', b"9" * 900)
        for v in VALUES
    ),
]


@pytest.mark.parametrize("content", ODD, ids=range(len(ODD)))
def test_an_odd_claim_says_nothing_and_is_judged_by_what_is_seen(
    tmp_path: Path, content: bytes
) -> None:
    clock = Clock()
    claims = Claims(locate(tmp_path), clock=clock)
    content = content.replace(b"HOST", socket.gethostname().encode())
    path = write_claim(tmp_path, "v0-1", content)
    os.utime(path, (2**33, 2**33))
    looks = 0
    while not look(claims):
        clock.now += 30
        looks += 1
    assert looks == 5
    assert not path.parent.exists()


@given(
    st.dictionaries(
        st.sampled_from(["host", "pid", "token", "boot", "namespace", "started", "more"]),
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text()
        | st.lists(st.none())
        | st.just(socket.gethostname()),
    )
    | st.binary()
)
def test_any_claim_can_be_read(content: dict[str, Any] | bytes) -> None:
    found = Holder.parse(content if isinstance(content, bytes) else json.dumps(content).encode())
    assert found.has_ended in {True, False}
    assert str(found).isprintable()


def test_a_folder_in_the_place_of_a_claim_is_named(tmp_path: Path) -> None:
    (tmp_path / "claims/v0-1.json/inside").mkdir(parents=True)
    claims = Claims(locate(tmp_path), clock=Clock())
    with pytest.raises(StorageError, match=r"cannot be written because a folder[\s\S]*v0-1.json"):
        look(claims)


def test_waiting_for_the_manifest_reports_and_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_claim(tmp_path, "manifest", claim_of_this_machine(host="another", pid=77))
    clock, reports = Clock(step=1), list[Wait]()

    def report(wait: Wait) -> None:
        reports.append(wait)
        os.utime(path, (len(reports), len(reports)))  # a heartbeat

    monkeypatch.setattr("time.sleep", lambda _: None)
    claims = Claims(locate(tmp_path), on_wait=report, clock=clock)
    with pytest.raises(StorageError, match="another process") as caught, claims.exclusive(MANIFEST):
        pytest.fail("it was somebody else's")
    assert "process 77 on another" in str(caught.value.got)
    assert "taken over after 120 s without one" in str(reports[0])
    assert reports[0].seconds < 10
    assert reports[-1].seconds > 340


def test_waiting_for_the_manifest_is_logged_where_nobody_else_reports_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_claim(tmp_path, "manifest", claim_of_this_machine(host="another", pid=77))
    monkeypatch.setattr("time.sleep", lambda _: None)
    with Claims(locate(tmp_path), clock=Clock(step=1)).exclusive(MANIFEST):
        assert "process 77 on another" in caplog.text
    assert not (tmp_path / "claims").exists()


def test_what_killed_runs_have_left_is_swept_and_a_live_claim_is_not(
    machine: Machine, tmp_path: Path
) -> None:
    machine.running[5] = 50.0
    write_claim(tmp_path, "dead", claim_of_this_machine(pid=7))
    write_claim(tmp_path, "before", claim_of_this_machine())
    write_claim(tmp_path, "trial-7", b"x" * 70_000)
    alive = write_claim(tmp_path, "alive", claim_of_this_machine(pid=5, started=50.0))
    far = write_claim(tmp_path, "far", claim_of_this_machine(host="another"))
    seen = write_claim(tmp_path, "seen", claim_of_this_machine(host="another"))
    write_claim(tmp_path, "seen too", claim_of_this_machine(host="another"))
    clock = Clock()
    claims = Claims(locate(tmp_path), clock=clock)
    with claims.exclusive(MANIFEST):
        for _ in range(4):
            assert not look(claims, "seen")
            assert not claims.remove_if_stale("seen too")
            clock.now += 30
        assert claims.sweep() == ["claims/before.json", "claims/dead.json", "claims/trial-7.json"]
        assert (alive.exists(), far.exists(), seen.exists()) == (True, True, True)
        assert (tmp_path / "claims/manifest.json").exists()
        clock.now += 30
        assert claims.remove_if_stale("seen too")
        assert claims.sweep() == ["claims/seen.json"], "which nobody waits for any more"
    with claims.exclusive(MANIFEST):
        assert claims.sweep() == []


def test_claims_are_described_by_what_is_known_of_their_process(
    machine: Machine, tmp_path: Path
) -> None:
    write_claim(tmp_path, "dead", claim_of_this_machine(pid=7))
    write_claim(tmp_path, "far", claim_of_this_machine(host="another", pid=7))
    write_claim(tmp_path, "trial-7", b"")
    manifest: Any = type("Manifest", (), {"revision": None})
    found = {orphan.key: orphan.why for orphan in find_orphans(locate(tmp_path), manifest, set())}
    assert found["claims/dead.json"] == (
        "the claim of a run that was killed (process 7 on container); "
        "the next precompute removes it"
    )
    assert found["claims/far.json"] == (
        "the claim of a run that is active or was killed (process 7 on another)"
    )
    assert "killed" in found["claims/trial-7.json"]
    assert machine.host == "container"


def test_temporary_files_of_processes_that_have_ended_are_swept(
    machine: Machine, tmp_path: Path
) -> None:
    machine.running |= {5: 50.0, 7: 70.0, 8: 80.0}
    files: dict[str, Path] = {}

    def partial(what: str, pid: int, **fields: Any) -> None:
        """Write a file as another process would."""
        changed = {**fields, "pid": pid}
        before = {name: getattr(machine, name) for name in changed}
        for values in (changed, before):
            temporary._mark_of.cache_clear()
            for name, value in values.items():
                setattr(machine, name, value)
            if values is changed:
                files[what] = tmp_path / temporary.temporary_name("a.json")
                files[what].write_bytes(b"half")

    partial("ours", 1)
    partial("alive", 5)
    partial("dead", 7)
    partial("number reused", 8)
    partial("process 1 before", 1)
    partial("another boot", 5, boot="id:second")
    partial("another namespace", 7, namespace="pid:2")
    partial("another host", 7, host="another")
    del machine.running[7]
    machine.running[8] = 81.0
    name = files["process 1 before"].name.replace("_1_10_", "_1_9_")
    files["process 1 before"] = files["process 1 before"].rename(tmp_path / name)
    swept = set(locate(tmp_path).sweep())
    gone = {"dead", "number reused", "process 1 before", "another boot"}
    assert {what for what, path in files.items() if path.name in swept} == gone
    for path in tmp_path.iterdir():
        os.utime(path, (0, 0))
    locate(tmp_path).sweep()
    temporary._mark_of.cache_clear()
    assert {what for what, path in files.items() if path.exists()} == {"ours", "alive"}


def test_temporary_files_of_older_versions_are_swept(tmp_path: Path) -> None:
    host = "".join(c if c.isalnum() else "-" for c in socket.gethostname())[:40]
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    fresh = tmp_path / f"a.json.{host}_{os.getpid()}_ab.partial"
    dead = tmp_path / f"b.json.{host}_{child.pid}_ab.partial"
    foreign, old = tmp_path / "c.json.other_1_ab.partial", tmp_path / "d.json.other_1_ab.partial"
    odd = tmp_path / "e.json..partial"
    for path in (fresh, dead, foreign, old, odd):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    assert sorted(locate(tmp_path).sweep()) == [dead.name, old.name]
    assert all(path.exists() for path in (fresh, foreign, odd))
