"""One image set in every form: one fingerprint, one cache, interchangeable between the stages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

import logitcache
from logitcache.cache.store.open import locate
from logitcache.data.readers import DataConfig, open_source
from logitcache.data.source import notes_of
from logitcache.precompute.build import build_cache
from logitcache.precompute.config import PrecomputeConfig
from logitcache.testing import ReaderContract
from logitcache.training.config import TrainConfig
from logitcache.training.evaluation.evaluate import EvaluateConfig, evaluate_network
from logitcache.training.loop import train_student
from tests.conftest import write_images
from tests.data.forms import FORMS
from tests.reliability.kills import snapshot

if TYPE_CHECKING:
    from pathlib import Path

    from logitcache.training.evaluation.evaluator import Evaluation

Values = dict[str, Any]
CNN = {"model": "resnet10t", "kwargs": {"channels": [8] * 4, "stem_width": 8}, "size": 32}


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest, images: Path, tmp_path: Path) -> Values:
    return FORMS[request.param](images, tmp_path)


@pytest.fixture
def unlabeled(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Values]:
    """Return a folder of images without classes, and another form of it."""
    folder, out = tmp_path / "images", tmp_path / "out"
    out.mkdir()
    write_images(folder, 12, (".",))
    return folder, FORMS[request.param](folder, out)


@pytest.fixture(scope="module")
def base(teachers: dict[str, dict[str, str]]) -> Values:
    return {"teachers": {"red": teachers["red"]}, "views": {"count": 2}, "unit_rows": 16}


@pytest.fixture(scope="module")
def expected(images: Path, base: Values, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cache of the folder."""
    path = tmp_path_factory.mktemp("forms") / "cache"
    build_cache(PrecomputeConfig.parse({**base, "cache": str(path), "data": str(images)}, ""))
    return path


class TestForms(ReaderContract):
    @pytest.fixture(params=FORMS)
    def write_set(self, request: pytest.FixtureRequest) -> Any:
        return lambda folder, out: DataConfig(**FORMS[request.param](folder, out))


def test_the_cache_is_that_of_the_folder(
    form: Values, base: Values, expected: Path, tmp_path: Path
) -> None:
    """Every committed byte; only the manifest names the image set."""
    config = {**base, "cache": str(tmp_path / "cache"), "data": form}
    build_cache(PrecomputeConfig.parse(config, ""))
    found, folder = snapshot(tmp_path / "cache"), snapshot(expected)
    committed = {name for name in folder if "/c/" in name or name.startswith("commits/")}
    assert len(committed) > 10
    assert {name: found[name] for name in committed} == {name: folder[name] for name in committed}
    manifests = [logitcache.open_cache(path).manifest for path in (tmp_path / "cache", expected)]
    assert manifests[0].data.fingerprint == manifests[1].data.fingerprint


def test_every_stage_takes_the_form_for_the_folder(
    form: Values, base: Values, expected: Path
) -> None:
    data = DataConfig(**form)
    config = PrecomputeConfig.parse({**base, "cache": str(expected), "data": form}, "")
    assert build_cache(config).computed == 0
    report = logitcache.verify(expected, data=data, teachers=base["teachers"], samples=8)
    assert report.ok
    assert report.images is not None
    images, targets = next(
        iter(logitcache.loader(logitcache.open_cache(expected), data, batch_size=60, size=8))
    )
    assert images.shape == (60, 3, 8, 8)
    assert len(targets) == 60


@pytest.mark.parametrize("unlabeled", FORMS, indirect=True)
def test_images_without_classes_have_no_labels_in_any_form(
    unlabeled: tuple[Path, Values], base: Values, tmp_path: Path
) -> None:
    folder, form = unlabeled
    source, expected = open_source(DataConfig(**form)), open_source(str(folder))
    assert sorted(source.keys) == sorted(expected.keys) == [f"{n:03d}.jpg" for n in range(12)]
    assert set(source.labels) == {-1}
    assert list(source.class_names) == []
    assert notes_of(source) == []
    config = {**base, "views": {"count": 1}, "cache": str(tmp_path / "cache"), "data": str(folder)}
    summary = build_cache(PrecomputeConfig.parse(config, ""))
    assert (summary.images, summary.accuracy) == (12, {"red": {}})
    assert build_cache(PrecomputeConfig.parse({**config, "data": form}, "")).computed == 0
    cache = logitcache.open_cache(tmp_path / "cache")
    _, targets = next(iter(logitcache.loader(cache, DataConfig(**form), batch_size=12, size=8)))
    assert set(targets.labels.tolist()) == {-1}


def trained(form: Values, cache: Path, out: Path) -> tuple[Evaluation, Evaluation]:
    """Train a student for two steps, and evaluate it by its run and by its export."""
    data = {**form, "split": "train"}  # no form but these has splits
    config = {"cache": str(cache), "data": data, "val": data, "student": CNN, "steps": 2}
    run = train_student(TrainConfig.parse({**config, "out": str(out), "batch_size": 16}, ""))
    assert run.evaluation is not None
    network = {"model": f"local-dir:{out / 'export'}"}
    return run.evaluation, evaluate_network(
        EvaluateConfig.parse({"network": network, "data": data}, "")
    ).evaluation


@pytest.fixture(scope="module")
def of_folder(
    images: Path, expected: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Evaluation, Evaluation]:
    return trained({"name": str(images)}, expected, tmp_path_factory.mktemp("run"))


def test_a_student_is_trained_and_evaluated_as_with_the_folder(
    form: Values, expected: Path, of_folder: tuple[Evaluation, Evaluation], tmp_path: Path
) -> None:
    assert trained(form, expected, tmp_path / "run") == of_folder


def test_a_plan_takes_it(form: Values, base: Values, expected: Path) -> None:
    config = PrecomputeConfig.parse({**base, "cache": str(expected), "data": form}, "")
    estimate = logitcache.estimate(config, locate(str(expected)))
    assert estimate.images == 60
    assert estimate.lacking is not None
    assert (estimate.lacking.images, estimate.lacking.new_images) == (60, 0)
