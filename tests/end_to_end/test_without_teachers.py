"""Stage 2 as a process of its own: the weights deleted, ``logitcache.teachers`` unimportable."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

from logitcache.cli.demo import _WITHOUT_TEACHERS
from tests.cli.test_commands import pipeline_file

if TYPE_CHECKING:
    from pathlib import Path


def run(
    file: Path, *arguments: str, bootstrap: str | None = None
) -> subprocess.CompletedProcess[str]:
    start = ["-c", bootstrap] if bootstrap else ["-m", "logitcache"]
    command = [sys.executable, *start, "run", str(file), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_students_need_no_teacher(images: Path, tmp_path: Path) -> None:
    file = pipeline_file(tmp_path / "p.yaml", images)
    first = run(file, "--only", "red", "--only", "cache")
    assert first.returncode == 0, first.stderr
    shutil.rmtree(tmp_path / "out" / "red")
    refused = run(file, "--only", "cache", "--set", "precompute.views.count=2",
                  bootstrap=_WITHOUT_TEACHERS)  # fmt: skip
    assert "logitcache.teachers" in refused.stderr, "the block works"
    done = run(file, "--only", "student", "--json", bootstrap=_WITHOUT_TEACHERS)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["runs"][0]["student"]["steps"] == 2
