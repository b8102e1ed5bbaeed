"""``loader()`` in other people's training loops, on two processes."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from logitcache import loader, open_cache
from tests.processes import run_ranks
from tests.targets.frameworks import BATCH, SIZE, main

if TYPE_CHECKING:
    from pathlib import Path

EPOCH = 9  # batches
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def expected(cache: Path, images: Path) -> list[list[dict[str, Any]]]:
    """Return what each of two processes is to be shown in two epochs."""
    shown: list[list[dict[str, Any]]] = []
    for rank in range(2):
        arguments: dict[str, Any] = {"batch_size": BATCH, "size": SIZE, "rank": rank, "ranks": 2}
        with loader(open_cache(cache), str(images), threads=1, **arguments) as found:
            shown.append(
                [
                    {"epoch": epoch, "rows": targets.rows.tolist()}
                    for epoch in range(2)
                    for _, targets in found
                ]
            )
    for epoch in range(2):
        batches = [process[epoch * EPOCH :][:EPOCH] for process in shown]
        rows = [row for process in batches for batch in process for row in batch["rows"]]
        assert sorted(rows) == list(range(60))
    return shown


def shown_in(out: Path) -> list[list[dict[str, Any]]]:
    return [
        [json.loads(line) for line in (out / f"rank-{rank}.jsonl").read_text().splitlines()]
        for rank in range(2)
    ]


def start(launcher: list[str], framework: str, *arguments: object) -> None:
    command = [sys.executable, *launcher, "-m", "tests.targets.frameworks", framework]
    command += map(str, arguments)
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def in_rank(rank: int, framework: str, cache: str, images: str, out: str, batches: int) -> None:
    main(framework, cache, images, out, batches)


def test_a_plain_script_under_torchrun(cache_path: Path, images: Path, tmp_path: Path) -> None:
    start(TORCHRUN, "plain", cache_path, images, tmp_path, EPOCH + 4)
    assert run_ranks(
        2, in_rank, "plain", str(cache_path), str(images), str(tmp_path), EPOCH - 4
    ) == [None, None]
    assert shown_in(tmp_path) == expected(cache_path, images)


def test_accelerate(cache_path: Path, images: Path, tmp_path: Path) -> None:
    for batches in (EPOCH + 4, EPOCH - 4):
        arguments = ("accelerate", str(cache_path), str(images), str(tmp_path), batches)
        assert run_ranks(2, in_rank, *arguments) == [None, None]
    assert shown_in(tmp_path) == expected(cache_path, images)


@pytest.mark.skipif(
    importlib.util.find_spec("lightning") is None, reason="needs lightning; see .ci/matrix"
)
def test_lightning(cache_path: Path, images: Path, tmp_path: Path) -> None:
    for steps in (EPOCH + 4, 2 * EPOCH):  # Lightning counts all steps of a run
        start([], "lightning", cache_path, images, tmp_path, steps)
    assert shown_in(tmp_path) == expected(cache_path, images)
