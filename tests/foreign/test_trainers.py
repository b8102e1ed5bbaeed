"""The scripts of ``docs/trainers.md`` on two processes: killed, started again, the same losses."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from logitcache.precompute.build import build_cache
from logitcache.precompute.config import PrecomputeConfig
from tests.foreign.interrupted import run_script
from tests.guides import ROOT, section_code
from tests.processes import run_ranks

if TYPE_CHECKING:
    from pathlib import Path

PAGE = "docs/trainers.md"
RANKS, EPOCH = 2, 4  # processes; steps
KILLED = EPOCH + 4  # in the last step
Steps = list[list[dict[str, Any]]]


def needs(package: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"needs {package}; see .ci/matrix")


LAUNCHED = ("Lightning", "Trainer of transformers")
"""Sections whose scripts torchrun starts; the others run in forked processes, in less time."""
SECTIONS = [
    "PyTorch",
    "accelerate",
    pytest.param("Lightning", marks=needs("lightning")),
    pytest.param("Trainer of transformers", marks=needs("transformers")),
]


@pytest.fixture(scope="module")
def cache_path(
    images: Path, teachers: dict[str, dict[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("trainers") / "cache"
    values = {"cache": str(path), "data": str(images), "views": {"count": 2}, "unit_rows": 16}
    build_cache(PrecomputeConfig.parse({**values, "teachers": {"cnn": teachers["cnn"]}}, ""))
    return path


def workplace(folder: Path, section: str, cache: Path, images: Path) -> Path:
    """Return a folder with the script of a section, and the cache and images that it names."""
    (folder / "photos").mkdir(parents=True)
    (folder / "photos/train").symlink_to(images, target_is_directory=True)
    (folder / "runs").mkdir()
    (folder / "runs/cache").symlink_to(cache, target_is_directory=True)
    (folder / "train.py").write_text(section_code(PAGE, section))
    return folder


def run(folder: Path, section: str, kill_at: int | None = None) -> str:
    """Run a script on two processes, and return their errors; empty if all went well."""
    script = str(folder / "train.py")
    if section not in LAUNCHED:
        results = run_ranks(RANKS, run_script, script, kill_at)
        return "" if results == [None, None] and kill_at is None else str(results)
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}"]
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "tests.foreign.interrupted", script],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            "KILL_AT": "" if kill_at is None else str(kill_at),
            "CUDA_VISIBLE_DEVICES": "",
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return "" if done.returncode == 0 else done.stderr


def steps_in(folder: Path) -> Steps:
    """Return the steps of each process, and remove the record of them."""
    found: Steps = []
    for rank in range(RANKS):
        path = folder / f"steps-{rank}.jsonl"
        found.append([json.loads(line) for line in path.read_text().splitlines()])
        path.unlink()
    return found


@pytest.fixture(scope="module")
def expected(cache_path: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Steps:
    """Return the steps of an uninterrupted run of the first script."""
    folder = tmp_path_factory.mktemp("plain")
    errors = run(workplace(folder, "PyTorch", cache_path, images), "PyTorch")
    assert not errors, errors[-3000:]
    found = steps_in(folder)
    for epoch in range(2):
        steps = [step for rank in found for step in rank[epoch * EPOCH :][:EPOCH]]
        assert sorted(row for step in steps for row in step["rows"]) == list(range(60))
    assert [len(rank) for rank in found] == [2 * EPOCH] * RANKS
    return found


def assert_same(got: Steps, expected: Steps) -> None:
    for one, other in zip(got, expected, strict=True):
        assert [step["rows"] for step in one] == [step["rows"] for step in other]
        assert [step["loss"] for step in one] == pytest.approx(
            [step["loss"] for step in other], abs=1e-6, rel=0
        )


@pytest.mark.parametrize("section", SECTIONS)
def test_a_script_that_is_killed_continues_with_the_same_steps(
    section: str, expected: Steps, cache_path: Path, images: Path, tmp_path: Path
) -> None:
    folder = workplace(tmp_path / "run", section, cache_path, images)
    errors = run(folder, section, KILLED)
    assert (folder / "steps-0.jsonl").exists(), errors[-3000:]
    before = steps_in(folder)
    assert len(before[0]) == KILLED - 1, errors[-3000:]
    before = [steps[: KILLED - 1] for steps in before]  # the other one may have gone further
    assert_same(before, [steps[: KILLED - 1] for steps in expected])
    errors = run(folder, section)
    assert not errors, errors[-3000:]
    after = steps_in(folder)
    saved = EPOCH + 2  # the last checkpoint has six steps
    assert_same(after, [steps[saved:] for steps in expected])
