"""A worker has what the run was planned with, or its error names the differences."""

from __future__ import annotations

import pickle
import shutil
import threading
from typing import TYPE_CHECKING, Any

import pytest
from torchvision.datasets import ImageFolder

from logitcache.data.readers import open_source
from logitcache.errors import DataError, LogitcacheError, UsageError
from logitcache.precompute.build import build_cache
from logitcache.precompute.cluster import environment_check as room
from logitcache.precompute.cluster.environment_check import (
    EnvironmentMismatch,
    describe_environment,
    named,
)
from logitcache.precompute.cluster.worker import UnitRunnerOpener
from logitcache.precompute.config import PrecomputeConfig
from logitcache.precompute.environment import versions
from logitcache.precompute.plan.plan import make_plan
from logitcache.teachers.ensemble import Ensemble
from tests.conftest import write_teacher

if TYPE_CHECKING:
    from pathlib import Path

Teachers = dict[str, dict[str, str]]


@pytest.fixture
def photos(images: Path, tmp_path: Path) -> Path:
    shutil.copytree(images, tmp_path / "photos")
    return tmp_path / "photos"


@pytest.fixture
def opener(photos: Path, teachers: Teachers, tmp_path: Path) -> UnitRunnerOpener:
    """Return what the planner sends; the files it saw are changed afterwards."""
    import torch

    shutil.copytree(teachers["red"]["model"].removeprefix("local-dir:"), tmp_path / "red")
    values: dict[str, Any] = {"cache": str(tmp_path / "c"), "data": str(photos), "device": "cpu"}
    values |= {"teachers": {"red": {"model": f"local-dir:{tmp_path / 'red'}"}}, "unit_rows": 16}
    config = PrecomputeConfig.parse({**values, "views": {"count": 2}}, "")
    source = open_source(config.data)
    ensemble = Ensemble(config.teachers, device=torch.device("cpu"), precision="float32")
    plan = make_plan(config, source, ensemble)
    locks = {name: member.lock for name, member in ensemble.members.items()}
    environment = describe_environment(source, locks, plan.views)
    return UnitRunnerOpener(config, environment, tuple(plan.groups), threads=1)


def refusal(opener: UnitRunnerOpener) -> LogitcacheError:
    with pytest.raises(LogitcacheError) as caught:
        opener.open(lambda _: None, 1)
    return caught.value


def test_the_same_files_are_agreed_on(opener: UnitRunnerOpener) -> None:
    opener.open(lambda _: None, 1).close()


def test_images_from_python_travel_to_the_workers(
    opener: UnitRunnerOpener, photos: Path, tmp_path: Path
) -> None:
    data = open_source(ImageFolder(photos))
    config = opener._config.model_copy(update={"data": None})
    sent = UnitRunnerOpener(config, opener._environment, opener._groups, 1, data)
    received: UnitRunnerOpener = pickle.loads(pickle.dumps(sent))
    received.open(lambda _: None, 1).close()
    without = UnitRunnerOpener(config, opener._environment, opener._groups, 1)
    assert "'data' is missing" in str(refusal(without))


def test_images_that_cannot_be_sent_are_refused_before_the_cache_is_made(
    images: Path, teachers: Teachers, tmp_path: Path
) -> None:
    red: Any = {"red": teachers["red"]}
    config = PrecomputeConfig(cache=str(tmp_path / "c"), teachers=red, workers=2)
    data = ImageFolder(images)
    source = open_source(data)
    source.lock = threading.Lock()  # type: ignore[attr-defined]  # cannot be pickled
    with pytest.raises(UsageError, match=r"cannot be sent to workers[\s\S]*pickle"):
        build_cache(config, data=source)
    assert not (tmp_path / "c").exists()


def test_a_worker_without_the_images_says_where_it_looked(
    opener: UnitRunnerOpener, photos: Path
) -> None:
    shutil.rmtree(photos)
    error = refusal(opener)
    assert isinstance(error, DataError)
    assert str(photos) in str(error)


def named_by_the_planner(error: LogitcacheError, before: Path) -> list[str]:
    assert isinstance(error, EnvironmentMismatch)
    assert "names, sizes or labels differ" in str(error)
    return named(open_source(str(before)), error.disputed)


def test_a_changed_file_is_refused_and_named(
    opener: UnitRunnerOpener, photos: Path, images: Path
) -> None:
    before = (photos / "cat" / "003.jpg").read_bytes()
    (photos / "cat" / "003.jpg").write_bytes(before + b"0")
    message = f"cat/003.jpg has {len(before) + 1} bytes on the worker, {len(before)} here"
    assert named_by_the_planner(refusal(opener), images) == [message]


def test_missing_and_further_files_are_refused_and_named(
    opener: UnitRunnerOpener, photos: Path, images: Path
) -> None:
    (photos / "dog" / "007.jpg").rename(photos / "dog" / "new.jpg")
    assert sorted(named_by_the_planner(refusal(opener), images)) == [
        "dog/007.jpg is missing on the worker",
        "dog/new.jpg is only on the worker",
    ]


def test_other_content_of_the_same_size_is_refused_where_it_is_sampled(
    opener: UnitRunnerOpener, photos: Path
) -> None:
    before = (photos / "cat" / "003.jpg").read_bytes()
    (photos / "cat" / "003.jpg").write_bytes(before[:-1] + b"0")
    assert "images.sample" in str(refusal(opener))


def test_other_weights_are_refused(opener: UnitRunnerOpener, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "red")
    write_teacher(tmp_path / "red", classes=3, seed=5)
    assert "teachers.red.weights_sha256" in str(refusal(opener))


def test_other_libraries_are_refused(
    opener: UnitRunnerOpener, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = versions()
    monkeypatch.setattr(room, "versions", lambda: {**ours, "torch": "1.0"})
    message = str(refusal(opener))
    assert f"versions.torch: 1.0 on this worker, {ours['torch']} in the plan" in message
