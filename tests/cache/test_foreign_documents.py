"""Recipes, locks and probes of a cache from elsewhere are what they should be, or damage."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from logitcache.cache.format.documents import parse_json
from logitcache.cache.format.fingerprints import probed, read_fingerprints
from logitcache.cache.format.manifest import read_manifest
from logitcache.cache.format.names import sha256
from logitcache.cache.format.partners import mixed_views
from logitcache.cache.format.teacher_lock import LockedFields
from logitcache.cache.read.reader import open_cache
from logitcache.cache.store.open import locate
from logitcache.cache.verify.integrity import verify
from logitcache.encoding.dense import DenseEncoding
from logitcache.errors import CacheDamaged, CacheError
from logitcache.precompute.plan.teacher_lock import as_locked
from logitcache.report.describe import describe
from logitcache.teachers.member import TeacherConfig
from logitcache.views.fingerprints import Fingerprint
from logitcache.views.recipe import recipe_id
from logitcache.views.spec import ViewsConfig
from tests.cache.building import RECIPE, VIEW, make_cache
from tests.cache.damage import edit_json

if TYPE_CHECKING:
    from pathlib import Path

ROWS = 20
LOGITS = np.random.default_rng(0).normal(size=(ROWS, 8)).astype(np.float32)
OTHER = ViewsConfig().random_view(1)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    make_cache(tmp_path / "c", {"a": (DenseEncoding(8), LOGITS)}, ROWS)
    return tmp_path / "c"


def edit_manifest(cache: Path, **fields: Any) -> None:
    def change(document: dict[str, Any]) -> None:
        document["attributes"]["logitcache"].update(fields)

    edit_json(cache / "zarr.json", change)


@pytest.mark.requirement("F3.13", "V2.4")
@pytest.mark.parametrize(
    "recipe",
    [
        OTHER.to_json(),
        {**RECIPE, "draw": 1},
        {**RECIPE, "operations": [{"op": "central_crop", "crop_pct": 0.5}]},
        {**RECIPE, "more": 1},
    ],
)
def test_a_view_with_the_recipe_of_another_is_damage(cache: Path, recipe: dict[str, Any]) -> None:
    edit_manifest(cache, views={VIEW: recipe})
    for look in (open_cache, describe):
        with pytest.raises(CacheDamaged, match="not the digest of its recipe") as caught:
            look(cache)
        assert caught.value.exit_code == 4
        assert VIEW in str(caught.value.where)
    assert "the id of a view is not the digest of its recipe" in verify(cache).faults[0].detail


@pytest.mark.requirement("F3.14")
@pytest.mark.parametrize(
    "recipe",
    [
        None,
        [],
        {},
        {**RECIPE, "algorithm": "1"},
        {**RECIPE, "operations": None},
        {**RECIPE, "operations": []},
        {**RECIPE, "operations": [None]},
        {**RECIPE, "operations": [{}]},
        {**RECIPE, "operations": [{"op": ["mix"]}]},
        {**RECIPE, "operations": [{"op": "\x1b[2J"}]},
        {**RECIPE, "operations": [{"op": "mix"}] * 100_000},
        {**RECIPE, "draw": [1]},
        {**RECIPE, "draw": 2**64},
        {**RECIPE, "seed": True},
        {**RECIPE, "size": "x" * 100_000},
    ],
)
def test_a_malformed_recipe_is_found_where_the_manifest_is_read(cache: Path, recipe: Any) -> None:
    edit_manifest(cache, views={VIEW: recipe})
    started = time.monotonic()
    for look in (open_cache, describe, lambda path: mixed_views(read_manifest(locate(path)))):
        with pytest.raises(CacheError, match="the manifest is damaged"):
            look(cache)
    assert not verify(cache).ok
    assert time.monotonic() - started < 10


@pytest.mark.requirement("F3.13", "V2.4")
@pytest.mark.parametrize(
    "operation",
    [
        {"op": "blur", "radius": [1e308, 1e308], "p": 1.0},
        {"op": "central_crop", "crop_pct": 1e-300},
        {"op": "twist"},
    ],
)
def test_a_recipe_that_no_reader_can_show_is_found_by_verify(
    cache: Path, operation: dict[str, Any]
) -> None:
    """Its id is right, so only whoever parses it notices."""
    recipe = {**OTHER.to_json(), "operations": [*OTHER.to_json()["operations"], operation]}
    edit_manifest(cache, views={VIEW: RECIPE, recipe_id(recipe): recipe})
    assert open_cache(cache).views_of(["a"]) == [VIEW]
    (fault,) = verify(cache).faults
    assert fault.view == recipe_id(recipe)
    assert "recipe of a view is malformed" in fault.detail


def test_a_manifest_of_300_views_is_read_in_no_time(cache: Path) -> None:
    settings = {"auto_augment": "rand-m9-mstd0.5-inc1", "re_prob": 0.25, "mixup_alpha": 0.8}
    views = ViewsConfig.parse({"count": 300, **settings}, "").views()
    edit_manifest(cache, views={VIEW: RECIPE, **{view.id: view.to_json() for view in views}})
    times = []
    for _ in range(5):
        started = time.process_time()
        assert len(read_manifest(locate(cache)).views) == 301
        times.append(time.process_time() - started)
    assert min(times) < 0.2, "25 ms where nothing else is running"


LOCK = {
    "architecture": "vit_tiny_patch16_224",
    "kwargs": {"img_size": 32},
    "weights_sha256": "0" * 64,
    "outputs": 8,
    "input": {"size": 32, "mean": [0.5, 0.5, 0.5]},
    "precision": "float32",
    "class_map": None,
}


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.requirement("F12.7")
@pytest.mark.parametrize(
    "change",
    [
        {"input": 3},
        {"input": {"size": "32"}},
        {"input": {"size": 10**9}},
        {"input": {"size": True}},
        {"precision": "float8"},
        {"precision": ["float32"]},
        {"architecture": {"a": 1}},
        {"architecture": "x" * 10_000},
        {"weights_sha256": None},
        {"class_map": "abc"},
        {"class_map": [-1]},
        {"class_map": [0.5]},
        {"kwargs": []},
        {"channels_last": 1},
        {"compile": "yes"},
        {"more": deep(20)},
    ],
)
def test_a_malformed_lock_is_found_where_the_manifest_is_read(
    cache: Path, change: dict[str, Any]
) -> None:
    def with_lock(lock: dict[str, Any]) -> None:
        teacher = {"lock": lock, "canonical_batch": 4, "source": "here"}
        edit_manifest(cache, teachers={"a": teacher})

    with_lock(LOCK)
    assert describe(cache).teachers[0].input_size == 32
    with_lock({**LOCK, **change})
    for look in (open_cache, describe):
        with pytest.raises(CacheError, match="the manifest is damaged"):
            look(cache)


@pytest.mark.requirement("F12.8")
def test_a_lock_does_not_decide_what_is_read() -> None:
    """A file or a folder of weights that a cache names could be anything."""
    arguments = {"checkpoint_path": "/x.pth", "pretrained_cfg": {"file": "/x"}, "img_size": 32}
    locked = LockedFields.model_validate({**LOCK, "kwargs": {**arguments, "cache_dir": "/"}})
    config = as_locked(TeacherConfig(model="vit_tiny_patch16_224", kwargs={"depth": 2}), locked)
    assert config.kwargs == {"img_size": 32, "depth": 2}
    assert config.size == 32


PROBE = {
    "view": VIEW,
    "row": 3,
    "partner": None,
    "size": 8,
    "parameters": "0" * 64,
    "pixels": "0" * 64,
    "at": [0, 0],
    "patch": "A" * 256,
}
DOCUMENT = {"format": 1, "views": [VIEW], "segments": [0], "versions": {}, "probes": [PROBE]}


def write_fingerprints(cache: Path, document: Any) -> dict[str, str]:
    content = document if isinstance(document, bytes) else json.dumps(document).encode()
    (cache / "probes").mkdir(exist_ok=True)
    (cache / "probes" / "1.json").write_bytes(content)
    return {"probes/1.json": sha256(content)}


@pytest.mark.requirement("F5.10")
def test_probes_are_read(cache: Path) -> None:
    digests = write_fingerprints(cache, DOCUMENT)
    (document,) = read_fingerprints(locate(cache), digests)
    assert Fingerprint.from_json(document.probes[0]).to_json() == PROBE
    assert probed(locate(cache)) == [(frozenset({VIEW}), frozenset({0}))]


@pytest.mark.requirement("F5.10", "F5.11")
@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"[" * 10_000,
        b"\xff",
        [],
        {},
        3,
        {**DOCUMENT, "views": 3},
        {**DOCUMENT, "views": [["a"]]},
        {**DOCUMENT, "views": ["../a"]},
        {**DOCUMENT, "segments": ["a"]},
        {**DOCUMENT, "segments": [-1]},
        {**DOCUMENT, "versions": {"torch": {}}},
        {**DOCUMENT, "versions": [1]},
        {**DOCUMENT, "probes": {}},
        {**DOCUMENT, "probes": ["a"]},
        {**DOCUMENT, "probes": [PROBE] * 2000},
    ],
)
def test_malformed_probes_are_damage(cache: Path, document: Any) -> None:
    digests = write_fingerprints(cache, document)
    with pytest.raises(CacheDamaged, match=r"is malformed|not valid JSON|not a JSON object"):
        read_fingerprints(locate(cache), digests)
    with pytest.raises(CacheDamaged, match=r"is malformed|not valid JSON|not a JSON object"):
        probed(locate(cache))


def test_probes_of_many_views_and_segments_take_no_product_of_both(cache: Path) -> None:
    many = {"views": [f"v{n}" for n in range(60_000)], "segments": list(range(60_000))}
    write_fingerprints(cache, {**DOCUMENT, **many})
    assert len(probed(locate(cache))[0].views) == 60_000


@pytest.mark.requirement("F5.10")
@pytest.mark.parametrize(
    "change",
    [
        {"view": None},
        {"row": "3"},
        {"row": 2**64},
        {"row": -1},
        {"partner": True},
        {"size": 0},
        {"size": 10**9},
        {"size": 8.0},
        {"at": [0]},
        {"at": [1, 0]},
        {"at": None},
        {"patch": "A" * 255},
        {"patch": "A" * 252},
        {"patch": "~" * 256},
        {"patch": "A" * 10**7},
        {"parameters": "x"},
        {"pixels": 3},
    ],
)
def test_a_malformed_probe_is_named(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        Fingerprint.from_json({**PROBE, **change})
    missing = {name: value for name, value in PROBE.items() if name not in change}
    with pytest.raises(ValueError, match="Field required"):
        Fingerprint.from_json(missing)


def test_text_is_read_alike_with_and_without_escapes() -> None:
    """Before 2.18.3 pydantic_core read escaped letters outside of ASCII as other letters."""
    names = ["É", "Škoda", "目", "😀"]
    for ascii_only in (True, False):
        content = json.dumps({"names": names}, ensure_ascii=ascii_only).encode()
        assert parse_json(content, "") == {"names": names}
