"""What only POSIX systems have is called in one module, with fallbacks."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from logitcache import platforms
from logitcache.precompute.build import build_cache
from logitcache.precompute.config import PrecomputeConfig
from logitcache.training.run.result import read_result

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[1]

WITHOUT_POSIX = """
import os, signal, sys
import locket, psutil  # libraries that use what Windows has in the place of these

for owner, names in {os: GONE_OF_OS, signal: ["SIGHUP", "SIGKILL"]}.items():
    for name in names:
        if hasattr(owner, name):
            delattr(owner, name)
os.process_cpu_count = os.cpu_count  # as in Python 3.13 without sched_getaffinity
for name in ("fcntl", "resource", "termios", "grp"):
    sys.modules[name] = None

import importlib, pkgutil
import logitcache

for module in pkgutil.walk_packages(logitcache.__path__, "logitcache."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
from logitcache.cli.app import main

cache, images, out = sys.argv[1:]
for command in (
    ["inspect", cache],
    ["verify", cache, "--data", images],
    ["train", "--cache", cache, "--data", images, "--val", images, "--out", out, "--epochs", "1",
     "--student", "resnet10t", "--set", "student.size=32", "--set", "student.kwargs.stem_width=16",
     "--set", "student.kwargs.channels=[16,16,16,16]", "--device", "cpu", "--threads", "1"],
    ["evaluate", os.path.join(out, "export"), "--data", images, "--threads", "1"],
):
    sys.argv = ["logitcache", *command]
    try:
        main()
    except SystemExit as left:
        assert not left.code, (command, left.code)
"""
GONE_OF_OS = ["sched_getaffinity", "sched_setaffinity", "statvfs", "O_DIRECTORY", "getuid", "fork"]


def test_reading_and_training_need_no_posix(
    images: Path, teachers: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    values = {"cache": str(cache), "data": str(images), "teachers": teachers}
    build_cache(PrecomputeConfig.parse({**values, "views": {"count": 1}}, ""))
    script = WITHOUT_POSIX.replace("GONE_OF_OS", repr(GONE_OF_OS))
    command = [sys.executable, "-c", script, str(cache), str(images), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    result = read_result(tmp_path / "out")
    assert result is not None
    assert result.evaluation is not None


POSIX_ONLY = {
    "os": {*GONE_OF_OS, "kill", "killpg", "setsid", "getloadavg", "mkfifo", "getpgid", "wait"},
    "signal": {"SIGHUP", "SIGKILL", "SIGUSR1", "SIGUSR2", "pthread_kill", "alarm"},
}
MODULES = sorted((ROOT / "logitcache").rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_else_calls_what_only_posix_has(path: Path) -> None:
    if path.name == "platforms.py":
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
            assert not names & {"fcntl", "resource", "termios", "pwd", "grp"}, path
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert node.attr not in POSIX_ONLY.get(node.value.id, ()), (path, node.attr)


def test_processors_are_counted_where_affinity_is_not_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert platforms.available_processors() >= 1
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: None)
    assert platforms.available_processors() == 1


@pytest.fixture(params=["/proc", "no /proc"])
def looked_up(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Look processes up as on Linux, and as elsewhere."""
    if request.param != "/proc":
        monkeypatch.setattr("logitcache.platforms._PROC", Path("/nowhere"))


@pytest.mark.usefixtures("looked_up")
def test_the_start_of_a_process_is_known_until_it_ends() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = platforms.process_started(child.pid)
    assert started is not None
    assert started == platforms.process_started(child.pid)
    assert started != platforms.process_started(os.getpid())
    child.stdin.close()  # type: ignore[union-attr]  # it is a pipe
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert platforms.process_started(child.pid) is None, (
        "it has ended, and nobody has waited for it"
    )
    child.wait()
    assert platforms.process_started(child.pid) is None
    assert platforms.process_started(2**31 - 1) is None
    assert platforms.process_started(2**70) is None


@pytest.mark.usefixtures("looked_up")
def test_a_boot_has_an_identity_and_processes_have_a_namespace() -> None:
    boot = platforms.boot_identity()
    assert boot == platforms.boot_identity()
    assert boot.startswith(("id:", "time:"))
    namespace = platforms.process_namespace()
    assert namespace
    assert namespace == platforms.process_namespace()


def test_processes_that_may_not_be_looked_at_exist(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As where /proc is mounted with ``hidepid``, and on macOS."""
    (tmp_path / "self").mkdir()
    monkeypatch.setattr("logitcache.platforms._PROC", tmp_path)
    with pytest.raises(PermissionError):
        platforms.process_started(os.getpid())
    monkeypatch.setattr("logitcache.platforms._PROC", tmp_path / "nowhere")

    def refused(process: psutil.Process) -> float:
        raise psutil.AccessDenied(process.pid)

    monkeypatch.setattr("psutil.Process.create_time", refused)
    with pytest.raises(PermissionError):
        platforms.process_started(os.getpid())


def test_the_processes_of_another_namespace_are_not_mistaken_for_ours(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As after ``unshare --pid`` without a /proc of its own."""
    (tmp_path / "self").symlink_to(str(os.getpid() + 1))
    (tmp_path / str(os.getpid() + 1)).mkdir()
    monkeypatch.setattr("logitcache.platforms._PROC", tmp_path)
    assert platforms.process_namespace() is None


def test_a_file_is_locked_until_its_descriptor_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before")
    assert platforms.is_locked(path) is False
    assert platforms.lock_file(path, b"another", b"after") is None
    descriptor = platforms.lock_file(path, b"before", b"now")
    assert descriptor is not None
    assert path.read_bytes() == b"now"
    assert platforms.is_locked(path) is True
    assert platforms.lock_file(path, b"now", b"then") is None
    os.close(descriptor)
    assert platforms.is_locked(path) is False
    assert platforms.is_locked(tmp_path / "nowhere") is None
    assert platforms.lock_file(tmp_path / "nowhere", b"", b"") is None
    monkeypatch.setattr("logitcache.platforms.fcntl", None)
    assert platforms.is_locked(path) is None
    assert platforms.lock_file(path, b"now", b"then") is None


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("logitcache.platforms._IS_WINDOWS", True)


def refuse(times: int, call: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that is refused a few times, as where a reader has the file open."""
    left = [times]

    def refused(*arguments: Any) -> Any:
        left[0] -= 1
        if left[0] >= 0:
            raise PermissionError(13, "the process cannot access the file")
        return call(*arguments)

    return refused


@pytest.mark.usefixtures("windows")
def test_a_file_that_is_being_read_is_replaced_a_little_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "new").write_text("new")
    (tmp_path / "old").write_text("old")
    monkeypatch.setattr(Path, "replace", refuse(3, Path.replace))
    platforms.replace_file(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old").read_text() == "new"
    monkeypatch.setattr("logitcache.platforms._REPLACE_SECONDS", 0.1)
    monkeypatch.setattr(Path, "replace", refuse(10**6, Path.replace))
    (tmp_path / "new").write_text("newer")
    with pytest.raises(PermissionError):
        platforms.replace_file(tmp_path / "new", tmp_path / "old")


def test_elsewhere_a_refusal_is_an_error_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "new").write_text("new")
    monkeypatch.setattr(Path, "replace", refuse(1, Path.replace))
    with pytest.raises(PermissionError):
        platforms.replace_file(tmp_path / "new", tmp_path / "old")


def test_folders_that_cannot_be_opened_are_not_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.open", refuse(10**6, os.open))
    with pytest.raises(PermissionError):
        platforms.sync_folder(tmp_path)
    monkeypatch.setattr("logitcache.platforms._IS_WINDOWS", True)
    platforms.sync_folder(tmp_path)
