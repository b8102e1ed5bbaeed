"""The difference of two caches, field by field, and by the mean KL divergence of shared rows."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from typer.testing import CliRunner

from logitcache.cache.read.reader import open_cache
from logitcache.cli.app import app
from logitcache.encoding.dense import DenseEncoding
from logitcache.encoding.features import FeatureEncoding
from logitcache.encoding.sigmoid import SigmoidEncoding
from logitcache.encoding.sparse import SparseEncoding
from logitcache.precompute.build import build_cache
from logitcache.precompute.config import PrecomputeConfig
from logitcache.share.comparing import compare_caches
from tests.share import caches
from tests.share.caches import CLASSES, VIEWS, Part, build, keys_of

if TYPE_CHECKING:
    from pathlib import Path

KEYS = keys_of(40)
FIRST, SECOND = list(VIEWS)
SMALL: dict[str, Any] = {"taps": ["b"], "views": [FIRST]}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("differences") / "whole"
    build(path, Part([KEYS], **SMALL))
    return path


def test_a_cache_and_its_rows_in_another_order_are_the_same(whole: Path, tmp_path: Path) -> None:
    build(tmp_path / "segments", Part([KEYS[:25], KEYS[25:]], unit=32, **SMALL))
    for other in (whole, tmp_path / "segments"):
        found = compare_caches(whole, other)
        assert found.is_same
        assert found.images == (40, 0, 0)
        assert [value.rows for value in found.values] == [40, 40, 40]
        assert not any(value.differing for value in found.values)


def test_what_only_one_cache_has_is_named(whole: Path, tmp_path: Path) -> None:
    part = Part([KEYS[10:]], [SECOND], ["dense"], ["a", "b"])
    build(tmp_path / "other", part)
    found = compare_caches(whole, tmp_path / "other")
    assert not found.is_same
    assert found.images == (30, 10, 0)
    assert found.views == ((FIRST,), (SECOND,))
    assert found.groups == (("sparse",), ("dense/features/a",))
    assert "dense has 2 views in one of the caches only" in found.fields
    assert not found.values


def test_values_are_compared_by_the_mean_divergence_of_shared_rows(
    whole: Path, tmp_path: Path
) -> None:
    build(tmp_path / "other", Part([KEYS[10:]], seed="x", **SMALL))
    found = compare_caches(whole, tmp_path / "other")
    assert found.images == (30, 10, 0)
    assert not found.is_same
    by_group = {value.group: value for value in found.values}
    readable = sum(not key.startswith("bad") for key in KEYS[10:])
    assert all(value.rows == 30 for value in found.values)
    assert all(value.differing == readable for value in found.values)
    ours, theirs = (outputs_by_key(path) for path in (whole, tmp_path / "other"))
    expected = []
    for key, q in theirs.items():
        p = ours[key]
        pairs = zip(p.tolist(), q.tolist(), strict=True)
        expected.append(sum(math.exp(a) * (a - b) for a, b in pairs))
    assert by_group["dense"].mean == pytest.approx(np.mean(expected), rel=1e-6)
    assert by_group["dense"].noise is None
    assert by_group["dense/features/b"].measure == "error"
    error = by_group["dense/features/b"].mean
    assert error is not None
    assert error > 0.5


def outputs_by_key(path: Path) -> dict[str, Any]:
    """Return normalized log-probabilities of the dense teacher, by key of readable images."""
    cache = open_cache(path)
    stored = cache.read("dense", FIRST, 0, cache.rows_end)["logp"].astype(np.float64)
    found = {}
    for row in cache.samples.readable:
        found[cache.samples.keys[row]] = stored[row] - np.log(np.exp(stored[row]).sum())
    return found


def test_data_teachers_and_encodings_are_compared_field_by_field(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encodings = {**caches.TEACHERS, "sparse": SparseEncoding(CLASSES, 4, "codes", 8)}
    monkeypatch.setattr(caches, "TEACHERS", encodings)
    monkeypatch.setattr(caches, "CLASS_NAMES", ("bird", "cat", "dog", "emu"))
    build(tmp_path / "other", Part([KEYS], **SMALL))
    found = compare_caches(whole, tmp_path / "other")
    assert "data.class_names differs" in found.fields
    assert "sparse has another encoding" in found.fields
    assert any("images have another label" in text for text in found.fields)


def test_the_same_outputs_in_two_encodings_differ_by_no_more_than_the_noise_floor(
    images: Path, teachers: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    for name, bits in (("fine", 8), ("coarse", 5), ("again", 8)):
        values = {
            "cache": str(tmp_path / name),
            "data": str(images),
            "teachers": {"cnn": teachers["cnn"]},
            "encoding": {"top_k": 2, "bits": bits},
            "unit_rows": 16,
        }
        build_cache(PrecomputeConfig.parse(values, ""))
    found = compare_caches(tmp_path / "fine", tmp_path / "coarse")
    [value] = found.values
    assert found.fields == ("cnn has another encoding",)
    assert value.differing > 0
    assert value.noise is not None
    assert value.mean is not None
    assert 0 < value.mean <= value.noise
    assert value.is_noise
    assert not found.is_same
    assert compare_caches(tmp_path / "fine", tmp_path / "again").is_same


def test_the_command_prints_the_difference_and_exits_with_4(whole: Path, tmp_path: Path) -> None:
    build(tmp_path / "other", Part([KEYS[1:]], seed="x", **SMALL))
    run = CliRunner()
    same = run.invoke(app, ["diff", str(whole), str(whole)])
    assert same.exit_code == 0
    assert "the caches are the same" in same.output
    other = run.invoke(app, ["diff", str(whole), str(tmp_path / "other")])
    assert other.exit_code == 4
    assert "images: 39 in both, 1 in the first only, 0 in the second only" in other.output
    assert "noise floor unknown" in other.output
    document = run.invoke(app, ["diff", str(whole), str(tmp_path / "other"), "--json"])
    assert document.exit_code == 4
    assert json.loads(document.stdout)["images"] == [39, 1, 0]


def test_sigmoid_heads_are_compared_by_the_presence_and_absence_of_each_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caches, "TEACHERS", {"dense": SigmoidEncoding(CLASSES, "float16")})
    part: dict[str, Any] = {"teachers": ["dense"], "taps": [], "views": [FIRST]}
    build(tmp_path / "a", Part([KEYS], **part))
    build(tmp_path / "b", Part([KEYS], seed="x", **part))
    [value] = compare_caches(tmp_path / "a", tmp_path / "b").values
    logits = []
    for name in ("a", "b"):
        cache = open_cache(tmp_path / name)
        stored = cache.read("dense", FIRST, 0, cache.rows_end)["logit"].astype(np.float64)
        logits.append(stored[cache.samples.readable].tolist())
    expected = []
    for ours, theirs in zip(*logits, strict=True):
        p, q = ([1 / (1 + math.exp(-x)) for x in row] for row in (ours, theirs))
        pairs = [*zip(p, q, strict=True), *((1 - a, 1 - b) for a, b in zip(p, q, strict=True))]
        expected.append(sum(a * math.log(a / b) for a, b in pairs))
    assert value.mean == pytest.approx(np.mean(expected), rel=1e-6)


def test_outputs_of_other_shapes_are_different_without_a_mean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part: dict[str, Any] = {"teachers": ["dense"], "taps": ["b"], "views": [FIRST]}
    build(tmp_path / "a", Part([KEYS], **part))
    monkeypatch.setattr(caches, "CLASSES", 10)
    monkeypatch.setattr(caches, "TABLE", caches.TABLE[:10])
    monkeypatch.setattr(caches, "TEACHERS", {"dense": DenseEncoding(10, "float16")})
    monkeypatch.setattr(caches, "TAPS", {"b": FeatureEncoding("vector", (4,))})
    build(tmp_path / "b", Part([KEYS], **part))
    found = compare_caches(tmp_path / "a", tmp_path / "b")
    assert "dense has another num_classes" in found.fields
    for value in found.values:
        assert value.differing > 0
        assert value.mean is None
        assert not replace(value, noise=1.0).is_noise
    run = CliRunner().invoke(app, ["diff", str(tmp_path / "a"), str(tmp_path / "b")])
    assert run.exit_code == 4
    assert "KL unknown" in run.output
