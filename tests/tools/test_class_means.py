"""Class tables from a cache."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from logitcache.cache.read.reader import open_cache
from logitcache.cli.app import main
from logitcache.errors import UsageError
from logitcache.precompute.build import build_cache
from logitcache.precompute.config import PrecomputeConfig
from logitcache.tools.cached_rows import stored_rows
from logitcache.tools.class_means import ClassMeansConfig, class_means, unit_means

if TYPE_CHECKING:
    from pathlib import Path


def by_loops(vectors: list[list[float]], labels: list[int], classes: int) -> list[list[float]]:
    found = []
    for c in range(classes):
        total = [0.0] * len(vectors[0])
        for vector, label in zip(vectors, labels, strict=True):
            if label == c:
                length = math.sqrt(math.fsum(x * x for x in vector))
                total = [t + x / length for t, x in zip(total, vector, strict=True)]
        length = math.sqrt(math.fsum(x * x for x in total))
        found.append([t / length for t in total])
    return found


@pytest.fixture(scope="module")
def cache(images: Path, teachers: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("means") / "cache"
    red = {**teachers["red"], "features": {"pre_logits": {}, "layer1": {}}}
    values = {"cache": str(path), "data": str(images), "teachers": {"red": red}}
    build_cache(PrecomputeConfig.parse({**values, "views": {"count": 1}}, ""))
    return str(path)


def config(cache: str, out: Path, **fields: Any) -> ClassMeansConfig:
    values = {"cache": cache, "feature": "red/pre_logits", "out": str(out), **fields}
    return ClassMeansConfig.parse(values, "class_means")


def test_means_are_those_of_the_plain_loops() -> None:
    vectors = np.random.default_rng(0).standard_normal((9, 4)).astype(np.float32)
    labels = np.array([0, 2, 1, 1, 0, 2, 2, 2, 1], np.int32)
    expected = by_loops(vectors.tolist(), labels.tolist(), 3)
    np.testing.assert_allclose(unit_means(vectors, labels, 3), expected, rtol=1e-6)


def test_the_table_has_the_mean_of_each_class_of_a_cache(cache: str, tmp_path: Path) -> None:
    found = class_means(config(cache, tmp_path / "t.safetensors"))
    assert found.classes == {"bird": 20, "cat": 20, "dog": 20}
    opened = open_cache(cache)
    rows = opened.samples.readable
    group = opened.tap("red/pre_logits")
    stored = group.encoding.decode(
        stored_rows(opened, group, opened.views_of([], ["red/pre_logits"])[0], rows)
    )
    expected = by_loops(stored.tolist(), opened.samples.labels[rows].tolist(), 3)
    table = load_file(tmp_path / "t.safetensors")
    means = [table[name] for name in ("bird", "cat", "dog")]
    np.testing.assert_allclose(means, expected, rtol=1e-5, atol=1e-6)


def test_some_of_the_labels_are_those_of_a_training_run(cache: str, tmp_path: Path) -> None:
    labels = {"count": 12, "seed": 1}
    found = class_means(config(cache, tmp_path / "t.safetensors", labels=labels))
    assert sum(found.classes.values()) == 12
    with pytest.raises(UsageError, match=r"classes have no image to average[\s\S]*labels.count"):
        class_means(config(cache, tmp_path / "u.safetensors", labels={"count": 2, "seed": 1}))
    assert not (tmp_path / "u.safetensors").exists()


def test_more_labels_than_there_are_are_refused(cache: str, tmp_path: Path) -> None:
    labels = {"count": 10**6, "seed": 1}
    with pytest.raises(UsageError, match=r"more labels than there are[\s\S]*at most \d+"):
        class_means(config(cache, tmp_path / "t.safetensors", labels=labels))


def test_maps_are_refused(cache: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="one vector for each image"):
        class_means(config(cache, tmp_path / "t.safetensors", feature="red/layer1"))


def test_the_command_writes_a_table(
    cache: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "t.safetensors"
    flags = ["--cache", cache, "--feature", "red/pre_logits", "--out", str(out)]
    printed = []
    for more in ([], ["--json"]):
        monkeypatch.setattr("sys.argv", ["logitcache", "tools", "class-means", *flags, *more])
        with pytest.raises(SystemExit, match="0"):
            main()
        printed.append(capsys.readouterr().out)
    assert "3 classes, 128 numbers each, from 60 images" in printed[0]
    assert json.loads(printed[1])["classes"] == {"bird": 20, "cat": 20, "dog": 20}
    assert len(load_file(out)) == 3
