"""Caches of every released version are read bit for bit, resumed, extended, never converted."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from logitcache.cache.read.reader import open_cache
from logitcache.cache.verify.integrity import verify
from logitcache.encoding.logits import log_softmax
from logitcache.errors import CacheUnsealed
from logitcache.precompute.build import build_cache
from logitcache.report.describe import describe
from tests.golden.caches_of import (
    HERE,
    IMAGES,
    MAKERS,
    NETWORKS,
    VIEWS,
    WITHOUT_IMAGES,
    config_of,
    expected,
    teacher,
    transform_logits,
    unpack,
    workplace,
    write_images,
    write_odd_images,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from logitcache.precompute.build import Summary

SEALED = sorted(path.with_suffix("") for path in HERE.glob("*/*.npz"))
UNSEALED = sorted(HERE.glob("*/unsealed.tar.xz"))
RENDERED = {"encodings": {"more": True, "bad": True}, "features": {}, "views": IMAGES["views"]}


def objects(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file of a cache except what every seal rewrites."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def named(path: Path) -> str:
    return f"{path.parent.name}-{path.name}"


def test_there_is_a_golden_cache_of_every_kind() -> None:
    assert {path.name for path in SEALED} == MAKERS.keys() - {"unsealed"}
    assert UNSEALED


@pytest.fixture
def place(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """Enter a folder with the images and weights of a golden cache, and the cache in it."""
    golden: Path = request.param
    images = RENDERED.get(golden.name, IMAGES.get(golden.name.partition(".")[0], {}))
    with workplace(tmp_path, **images):
        if golden.name == "odd":
            write_odd_images(Path("images"))
        unpack(golden.parent / f"{golden.name.partition('.')[0]}.tar.xz", Path("cache"))
        yield golden


@pytest.mark.requirement("F2.11", "F4.1", "F11.5", "F11.18", "V5.1")
@pytest.mark.parametrize("place", SEALED, ids=named, indirect=True)
def test_everything_is_read_bit_for_bit(place: Path) -> None:
    before = objects(Path("cache"))
    cache = open_cache("cache")
    found = expected(cache, images=None if place.name in WITHOUT_IMAGES else "images")
    with np.load(place.with_suffix(".npz")) as golden:
        assert found.keys() == set(golden.files)
        for name in golden.files:
            if golden[name].dtype == np.float32 and "decoded" in name:
                # read with exp and log, which processors may round otherwise in float64
                np.testing.assert_array_max_ulp(found[name], golden[name], maxulp=1)
            else:
                np.testing.assert_array_equal(found[name], golden[name], err_msg=name)
    assert verify("cache").ok
    assert objects(Path("cache")) == before, "reading changes nothing"


@pytest.mark.requirement("F7.13", "F7.14")
@pytest.mark.parametrize(
    "place", [path for path in SEALED if path.name == "transform"], ids=named, indirect=True
)
def test_transformed_outputs_are_encoded_bit_for_bit(place: Path) -> None:
    """On every processor: all sums are of integers."""
    logits = transform_logits()
    cache = open_cache("cache")
    group = cache.teacher("t")
    stored = cache.read("t", group.view_ids[0], 0, len(logits))
    readable = cache.samples.readable[: len(logits)]
    for name, array in group.encoding.encode(log_softmax(logits)[0]).items():
        np.testing.assert_array_equal(array[readable], stored[name][readable])


def unchanged(before: dict[str, str], after: dict[str, str], below: tuple[str, ...]) -> bool:
    kept = {key: digest for key, digest in before.items() if key.startswith(below)}
    assert kept
    return kept.items() <= after.items()


def version_of(folder: str) -> tuple[int, Any]:
    attributes = json.loads(Path(folder, "zarr.json").read_text())["attributes"]["logitcache"]
    return attributes["format"], attributes.get("requires")


@pytest.mark.requirement("F2.9", "F2.11")
@pytest.mark.parametrize("place", UNSEALED, ids=named, indirect=True)
def test_a_stopped_run_is_finished(place: Path) -> None:
    before, version = objects(Path("cache")), version_of("cache")
    assert not describe("cache").complete
    teachers = {name: teacher(name) for name in NETWORKS}
    summary = build_cache(config_of(teachers, {"count": 2, "mixup_alpha": 0.5}, {"top_k": 5}))
    assert summary.unreadable == 1
    assert unchanged(before, objects(Path("cache")), ("commits/", "samples/key/c/"))
    assert version_of("cache") == version
    report = verify("cache")
    assert report.ok
    assert describe("cache").complete
    expected(open_cache("cache"), images="images")  # it can be trained from


@pytest.mark.requirement("F2.9", "F2.11")
@pytest.mark.parametrize(
    "place", [path for path in SEALED if path.name == "views"], ids=named, indirect=True
)
def test_views_and_images_are_added(place: Path) -> None:
    before, version = objects(Path("cache")), version_of("cache")
    write_images(Path("images"), per_class=1, more=True)
    encoding = {"kind": "dense", "dense_values": "uint8", "lse": False}
    for views in ({**VIEWS[3], "seed": 11}, *VIEWS):
        done = build_added(views, encoding)
    assert done is not None
    assert done.images > 12
    assert unchanged(before, objects(Path("cache")), ("commits/", "revisions/", "ledger/"))
    assert version_of("cache") == version
    assert verify("cache").ok
    assert len(open_cache("cache").views) == 16 + 4
    with np.load(place.with_suffix(".npz")) as golden:
        old = {name: golden[name] for name in golden.files if "|stored|" in name}
    found = expected(open_cache("cache"))
    for name, values in old.items():
        np.testing.assert_array_equal(found[name][: len(values)], values, err_msg=name)


def build_added(views: dict[str, Any], encoding: dict[str, Any]) -> Summary | None:
    """Add what is missing of some views; None while others lack the new images."""
    try:
        config = config_of({"cnn": teacher("cnn")}, views, encoding)
        return build_cache(config.model_copy(update={"add_views": True}))
    except CacheUnsealed:
        return None


@pytest.mark.requirement("F2.9", "F2.11", "F5.16")
@pytest.mark.parametrize(
    "place", [path for path in SEALED if path.name == "packed"], ids=named, indirect=True
)
def test_a_cache_with_its_images_is_extended_without_others(place: Path) -> None:
    before = objects(Path("cache"))
    shutil.rmtree("images")
    config = config_of({"cnn": teacher("cnn")}, {"count": 3, "mixup_alpha": 0.5}, {"top_k": 3})
    summary = build_cache(config.model_copy(update={"data": None}))
    assert summary.computed == summary.images == 24
    assert unchanged(before, objects(Path("cache")), ("commits/", "images/", "samples/"))
    assert verify("cache").ok
    with np.load(place.with_suffix(".npz")) as golden:
        digests = golden["images"]
    images = open_cache("cache").image_bytes
    assert images is not None
    for row, digest in enumerate(digests.tolist()):
        assert hashlib.sha256(images.read(row)).hexdigest() == digest
