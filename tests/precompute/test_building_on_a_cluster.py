"""Real images and teachers on real workers: the cache is the one that a single process makes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from logitcache.data.packing import ImagesConfig
from logitcache.errors import UsageError
from logitcache.precompute.build import build_cache
from logitcache.precompute.cluster.cluster import local_cluster
from logitcache.precompute.config import PrecomputeConfig
from logitcache.report.survey import survey
from tests.end_to_end.test_signals import wait_for
from tests.reliability.kills import snapshot

if TYPE_CHECKING:
    from pathlib import Path

    from logitcache.precompute.run.compute import Progress

Teachers = dict[str, dict[str, str]]


def config(cache: Path, images: Path, teachers: Teachers, **fields: Any) -> PrecomputeConfig:
    values: dict[str, Any] = {"cache": str(cache), "data": str(images), "teachers": teachers}
    values |= {"views": {"count": 4}, "unit_rows": 16, "batch_size": 4, "device": "cpu"}
    return PrecomputeConfig.parse({**values, "threads": 1, **fields}, "")


@pytest.fixture(scope="module")
def whole(
    images: Path, teachers: Teachers, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    path = tmp_path_factory.mktemp("whole") / "c"
    build_cache(config(path, images, teachers))
    return snapshot(path)


def test_the_workers_of_a_scheduler_make_the_same_cache(
    images: Path, teachers: Teachers, whole: dict[str, bytes], tmp_path: Path
) -> None:
    seen: list[Progress] = []
    with local_cluster(2, gpus=False) as client:
        address = client.scheduler.address  # type: ignore[union-attr]  # it is connected
        on_it = config(tmp_path / "c", images, teachers, scheduler=address, device="auto")
        summary = build_cache(on_it, on_progress=seen.append)
        assert build_cache(on_it).computed == 0
        surveyed = survey(str(tmp_path / "c"))
    assert surveyed == survey(str(tmp_path / "c"))
    assert summary.computed == 60 * 4
    assert snapshot(tmp_path / "c") == whole
    assert {worker.name[0] for worker in seen[-1].workers} == {"0", "1"}
    assert summary.notes[-1] == "no worker offers the resource GPU; computed on CPUs"


def test_workers_pack_the_same_images(images: Path, teachers: Teachers, tmp_path: Path) -> None:
    one = {"cnn": teachers["cnn"]}
    alone = config(tmp_path / "alone", images, one)
    packing = ImagesConfig(side=24)
    build_cache(alone.model_copy(update={"images": packing}))
    shared = config(tmp_path / "c", images, one, workers=2)
    build_cache(shared.model_copy(update={"images": packing}))
    assert snapshot(tmp_path / "c") == snapshot(tmp_path / "alone")


def test_ctrl_c_leaves_a_cache_that_one_process_finishes(
    images: Path, teachers: Teachers, whole: dict[str, bytes], tmp_path: Path
) -> None:
    flags = ["--cache", str(tmp_path / "c"), "--data", str(images), "--unit-rows", "16"]
    flags += [f"--teacher={name}={value['model']}" for name, value in teachers.items()]
    flags += ["--views", "4", "--batch-size", "4", "--device", "cpu", "--threads", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "logitcache", "precompute", *flags, "--workers", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that the terminal's signal can go to all of them
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    wait_for(tmp_path, "c/commits/teachers/red/*/1.json", process)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 3, err
    assert "re-run the same command" in err
    assert "Traceback" not in err
    assert build_cache(config(tmp_path / "c", images, teachers)).computed > 0
    assert snapshot(tmp_path / "c") == whole


def test_a_cluster_is_started_or_joined(images: Path, teachers: Teachers, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="set only one"):
        config(tmp_path, images, teachers, workers=2, scheduler="tcp://127.0.0.1:1")
    with pytest.raises(UsageError, match="set a number for workers"):
        config(tmp_path, images, teachers, workers=2, batch_size="auto")
