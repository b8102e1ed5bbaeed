"""One image set in every form: one fingerprint, one cache, interchangeable between the stages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import logitcache
from logitcache.data.readers import DataConfig, open_source
from logitcache.precompute.build import build_cache
from logitcache.precompute.config import PrecomputeConfig
from logitcache.testing import SourceContract
from tests.data.forms import FORMS
from tests.reliability.kills import snapshot

if TYPE_CHECKING:
    from pathlib import Path

    from logitcache.data.source import Source

Values = dict[str, Any]


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest, images: Path, tmp_path: Path) -> Values:
    return FORMS[request.param](images, tmp_path)


@pytest.fixture(scope="module")
def base(teachers: dict[str, dict[str, str]]) -> Values:
    return {"teachers": {"red": teachers["red"]}, "views": {"count": 2}, "unit_rows": 16}


@pytest.fixture(scope="module")
def expected(images: Path, base: Values, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cache of the folder."""
    path = tmp_path_factory.mktemp("forms") / "cache"
    build_cache(PrecomputeConfig.parse({**base, "cache": str(path), "data": str(images)}, ""))
    return path


class TestForms(SourceContract):
    @pytest.fixture
    def source(self, form: Values) -> Source:
        return open_source(DataConfig(**form))


def test_keys_classes_labels_and_bytes_are_those_of_the_folder(form: Values, images: Path) -> None:
    source, folder = open_source(DataConfig(**form)), open_source(str(images))
    position = {key: index for index, key in enumerate(source.keys)}
    assert position.keys() == set(folder.keys)
    order = [position[key] for key in folder.keys]
    assert list(source.class_names) == list(folder.class_names)
    np.testing.assert_array_equal(source.labels[order], folder.labels)
    assert set(source.sizes[order] - folder.sizes) <= {0}
    assert all(source.read(order[index]) == folder.read(index) for index in range(60))


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
