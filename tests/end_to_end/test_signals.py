"""Ctrl-C and SIGTERM to a real process: what is whole is kept, and the exit code says so."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from logitcache.cache.read.reader import open_cache
from tests.training.test_loop import VIT

if TYPE_CHECKING:
    from pathlib import Path

Teachers = dict[str, dict[str, str]]


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "logitcache", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(path: Path, pattern: str, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not list(path.glob(pattern)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_precompute_stops_and_resumes(
    images: Path, teachers: Teachers, tmp_path: Path, number: signal.Signals
) -> None:
    named = [f"--teacher={name}={value['model']}" for name, value in teachers.items()]
    flags = ["precompute", "--cache", tmp_path / "c", "--data", images, *named]
    flags += ["--unit-rows", 16, "--batch-size", 4, "--device", "cpu"]
    process = start(*flags, "--views", 300)
    wait_for(tmp_path, "c/commits/teachers/red/*/0.json", process)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 3, err
    assert "re-run the same command" in err
    assert "Traceback" not in err


def test_train_stops_and_resumes(images: Path, tmp_path: Path) -> None:
    kwargs = VIT["kwargs"]
    assert isinstance(kwargs, dict)
    sets = [part for k, v in kwargs.items() for part in ("--set", f"student.kwargs.{k}={v}")]
    flags = ["train", "--data", images, "--student", VIT["model"], "--out", tmp_path / "t", *sets]
    flags += ["--batch-size", 16, "--device", "cpu", "--epochs", 100000]
    process = start(*flags)
    wait_for(tmp_path, "t/checkpoints/0*", process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 3, err
    assert "continue with --resume" in err


def test_a_cache_that_was_stopped_is_finished_by_the_same_command(
    images: Path, teachers: Teachers, tmp_path: Path
) -> None:
    flags = ["precompute", "--cache", tmp_path / "c", "--data", images, "--views", 6]
    flags += [f"--teacher=red={teachers['red']['model']}", "--unit-rows", 16, "--batch-size", 1]
    process = start(*flags)
    wait_for(tmp_path, "c/commits/teachers/red/*/0.json", process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode in {0, 3}
    done = start(*flags)
    _, err = done.communicate(timeout=120)
    assert done.returncode == 0, err
    assert len(open_cache(tmp_path / "c").views_of(["red"])) == 6
