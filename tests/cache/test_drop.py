"""Dropping teachers, taps and views: readers are not disturbed, kills lose nothing."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from logitcache.cache.format.manifest import read_manifest
from logitcache.cache.format.names import FEATURES
from logitcache.cache.read.diagnose import Cause
from logitcache.cache.read.reader import open_cache
from logitcache.cache.store.local import LocalLocation
from logitcache.cache.store.open import locate
from logitcache.cache.verify.integrity import verify
from logitcache.cache.write.drop import drop_from_cache, finish_drops
from logitcache.cache.write.writer import CacheWriter
from logitcache.errors import UnsupportedFormat, UsageError
from logitcache.precompute.build import build_cache
from logitcache.precompute.config import PrecomputeConfig
from logitcache.report.describe import describe
from logitcache.targets.loader import loader
from tests.conftest import write_images
from tests.golden.caches_of import HERE, unpack

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Teachers = dict[str, dict[str, str]]
IMAGES = 18
VIEWS = {"count": 2, "mixup_alpha": 0.8, "eval": True}


def config(cache: Path, images: Path, teachers: Teachers, **fields: Any) -> PrecomputeConfig:
    cnn = {**teachers["cnn"], "features": {"layer3": {}, "layer4": {}}}
    values = {"cache": str(cache), "data": str(images), "unit_rows": 16, "views": VIEWS}
    both = {"cnn": cnn, "red": teachers["red"]}
    return PrecomputeConfig.parse({"teachers": both, **values, **fields}, "")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two units of images: every step of a drop is tried, and each makes a cache."""
    return write_images(tmp_path_factory.mktemp("images"), IMAGES // 3)


@pytest.fixture(scope="module")
def made(images: Path, teachers: Teachers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("drop") / "cache"
    build_cache(config(path, images, teachers))
    return path


@pytest.fixture
def cache(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "cache")
    return tmp_path / "cache"


def answers(cache: Path) -> dict[str, Any]:
    """Return everything that a reader gets, by group and view."""
    found = open_cache(cache)
    return {
        f"{name}|{view}": found.read(name, view, 0, found.rows_end)
        for name, group in found.groups.items()
        for view in found.views_of([group.path.split("/")[1]])
    }


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, arrays in found.items():
        for array, values in arrays.items():
            np.testing.assert_array_equal(values, expected[name][array])


@pytest.mark.requirement("F2.4", "F3.15")
def test_views_are_dropped_and_computed_anew(cache: Path, images: Path, teachers: Teachers) -> None:
    before, reader = answers(cache), open_cache(cache)
    view = list(reader.views)[1]
    dropped = drop_from_cache(cache, views=["1"])
    assert dropped.views == (view,)
    assert dropped.left_views == tuple(v for v in reader.views if v != view)
    assert list(open_cache(cache).views) == list(dropped.left_views)
    assert_same(answers(cache), {n: v for n, v in before.items() if not n.endswith(view)})
    report = verify(cache)
    assert report.ok, report
    assert reader.read("cnn", view, 0, IMAGES), "who has it open can go on"
    with loader(open_cache(cache), str(images), batch_size=IMAGES // 2, size=8) as batches:
        for _ in range(2):
            assert sum(len(targets) for _, targets in batches) == IMAGES
    done = build_cache(config(cache, images, teachers, add_views=True))
    assert done.computed == IMAGES
    assert_same(answers(cache), before)
    assert verify(cache).ok


@pytest.mark.requirement("F2.4")
def test_a_cache_with_dropped_views_names_what_a_reader_has_to_know(cache: Path) -> None:
    assert "dropped-views" in FEATURES
    drop_from_cache(cache, teachers=["red"])
    root = json.loads((cache / "zarr.json").read_text())["attributes"]["logitcache"]
    assert "dropped-views" not in root["requires"], "an older reader reads this"
    drop_from_cache(cache, views=["0"])
    root = json.loads((cache / "zarr.json").read_text())["attributes"]["logitcache"]
    assert "dropped-views" in root["requires"]
    assert root["format"] == 2


@pytest.mark.requirement("F2.2", "F2.4")
def test_an_older_reader_refuses(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drop_from_cache(cache, views=["0"])
    monkeypatch.delitem(FEATURES, "dropped-views")
    with pytest.raises(UnsupportedFormat, match="dropped-views"):
        open_cache(cache)


@pytest.mark.requirement("F11.21")
@pytest.mark.parametrize(
    ("what", "gone"),
    [
        ({"teachers": ["red"]}, {"red"}),
        ({"teachers": ["cnn"]}, {"cnn", "cnn/features/layer3", "cnn/features/layer4"}),
        ({"features": ["cnn/layer3"]}, {"cnn/features/layer3"}),
    ],
)
def test_teachers_and_taps_are_dropped_and_computed_anew(
    cache: Path, images: Path, teachers: Teachers, what: dict[str, Any], gone: set[str]
) -> None:
    before = answers(cache)
    drop_from_cache(cache, **what)
    left = {name: v for name, v in before.items() if name.partition("|")[0] not in gone}
    assert_same(answers(cache), left)
    assert verify(cache).ok
    assert describe(cache).revision == 3
    build_cache(config(cache, images, teachers))
    assert_same(answers(cache), before)
    assert verify(cache).ok


@pytest.mark.requirement("F11.22")
def test_another_teacher_takes_the_name(cache: Path, images: Path, teachers: Teachers) -> None:
    before = answers(cache)
    drop_from_cache(cache, teachers=["red"])
    build_cache(config(cache, images, {"cnn": teachers["cnn"], "red": teachers["cnn"]}))
    after = answers(cache)
    view = next(iter(open_cache(cache).views))
    assert not np.array_equal(
        next(iter(after[f"red|{view}"].values())), next(iter(before[f"red|{view}"].values()))
    )
    np.testing.assert_array_equal(after[f"red|{view}"]["logp"], before[f"cnn|{view}"]["logp"])
    assert verify(cache).ok


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ({}, "nothing to drop"),
        ({"teachers": ["rad"]}, "did you mean 'red'"),
        ({"features": ["cnn/layer5"]}, "no feature"),
        ({"views": ["7"]}, "no view '7'"),
        ({"teachers": ["cnn", "red"]}, "no teacher would be left"),
        ({"views": ["0-2"]}, "no view would be left"),
    ],
)
def test_what_cannot_be_dropped_is_named(cache: Path, what: dict[str, Any], message: str) -> None:
    before = (cache / "zarr.json").read_bytes()
    with pytest.raises(UsageError, match=message):
        drop_from_cache(cache, **what)
    assert (cache / "zarr.json").read_bytes() == before


def test_a_teacher_that_would_be_left_without_views_is_named(
    images: Path, teachers: Teachers, tmp_path: Path
) -> None:
    cache = tmp_path / "c"
    for count, name in ((1, "red"), (2, "cnn")):
        values = {"cache": str(cache), "data": str(images), "views": {"count": count}}
        build_cache(PrecomputeConfig.parse({**values, "teachers": {name: teachers[name]}}, ""))
    with pytest.raises(UsageError, match="'red' would be left without a view"):
        drop_from_cache(cache, views=["0"])
    drop_from_cache(cache, views=["0"], teachers=["red"])
    assert verify(cache).ok


class Killed(BaseException):
    """Stands for kill -9."""


def kill_at_write(monkeypatch: pytest.MonkeyPatch, number: int) -> Callable[[], int]:
    """Let the process be killed before its n-th change of a file."""
    count = [0]
    for name in ("write", "delete"):
        original = getattr(LocalLocation, name)

        def wrapped(self: Any, key: str, *args: Any, original: Any = original) -> Any:
            if not key.startswith("claims/"):
                count[0] += 1
                if count[0] == number:
                    raise Killed
            return original(self, key, *args)

        monkeypatch.setattr(LocalLocation, name, wrapped)
    return lambda: count[0]


WHAT: list[dict[str, Any]] = [
    {"views": ["1"]},
    {"teachers": ["red"]},
    {"views": ["2"], "teachers": ["cnn"]},
]


@pytest.mark.requirement("F11.21", "F11.22")
@pytest.mark.parametrize("what", WHAT)
def test_a_kill_at_any_write_leaves_the_old_cache_or_the_new_one(
    made: Path, tmp_path: Path, images: Path, teachers: Teachers, what: dict[str, Any]
) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(made, whole)
    ids = list(open_cache(made).views)
    what = {name: [ids[int(n)] for n in v] if name == "views" else v for name, v in what.items()}
    with pytest.MonkeyPatch.context() as patch:
        writes = kill_at_write(patch, 0)
        drop_from_cache(whole, **what)
        total = writes()
    before, after = answers(made), answers(whole)
    steps = range(1, total + 1, max(1, total // 12))
    for index, number in enumerate(steps):
        cache = tmp_path / f"killed-{number}"
        shutil.copytree(made, cache)
        with pytest.MonkeyPatch.context() as patch:
            kill_at_write(patch, number)
            with pytest.raises(Killed):
                drop_from_cache(cache, **what)
        found = answers(cache)
        assert_same(found, before if found.keys() == before.keys() else after)
        # between its last two writes, a process that is killed looks like a manifest put back
        assert {fault.cause for fault in verify(cache).faults} <= {Cause.ROLLED_BACK}, number
        if index % 2:
            try:
                drop_from_cache(cache, **what)
            except UsageError:  # it was done
                assert found.keys() == after.keys()
            assert_same(answers(cache), after)
        else:  # precompute finishes the drop before it adds what is lacking
            build_cache(config(cache, images, teachers, add_views=True))
            assert_same(answers(cache), before)
        assert verify(cache).ok, number
        shutil.rmtree(cache)


@pytest.mark.requirement("F2.7", "F2.10")
def test_an_old_cache_whose_drop_was_killed_is_kept_from_old_writers(tmp_path: Path) -> None:
    """They would take the commits of the dropped teacher for those of a new one."""
    old = unpack(HERE / "0.1" / "encodings.tar.xz", tmp_path / "old")
    before = read_manifest(locate(str(old)))
    assert (before.format, before.requires) == (1, ())
    gone = next(iter(before.teachers))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("logitcache.cache.write.drop.finish_drops", stop_after(1, finish_drops))
        with pytest.raises(Killed):
            drop_from_cache(old, teachers=[gone])
    between = read_manifest(locate(str(old)))
    assert (between.format, between.requires) == (2, ("dropping",))
    assert between.dropping
    assert gone not in open_cache(old).manifest.teachers
    writer = CacheWriter.open(locate(str(old)))
    finish_drops(writer)
    after = read_manifest(locate(str(old)))
    assert (after.format, after.requires, after.dropping) == (1, (), ())
    assert verify(old).ok


def stop_after(times: int, call: Callable[..., None]) -> Callable[..., None]:
    """Let the process be killed at a call, after it was called some times."""
    left = [times]

    def stopping(*arguments: Any) -> None:
        if not left[0]:
            raise Killed
        left[0] -= 1
        call(*arguments)

    return stopping


@pytest.mark.requirement("F2.10", "F3.15")
def test_only_dropping_a_view_turns_format_1_into_format_2(tmp_path: Path) -> None:
    old = unpack(HERE / "0.1" / "views.tar.xz", tmp_path / "old")
    before = open_cache(old)
    name = next(iter(before.teachers))
    drop_from_cache(old, views=["1"])
    after = read_manifest(locate(str(old)))
    assert (after.format, after.requires) == (2, ("dropped-views",))
    slots = json.loads((old / f"teachers/{name}/zarr.json").read_text())
    found = slots["attributes"]["logitcache"]["view_ids"]
    expected = list(before.teacher(name).view_ids)
    gone = list(before.views)[1]
    assert found == ["" if view == gone else view for view in expected]
    array = json.loads((old / f"teachers/{name}/logp/zarr.json").read_text())
    assert array["shape"][0] == len(expected), "the slot is still counted"
    assert "" not in before.teacher(name).view_ids
    assert len(before.read(name, gone, 0, 1)["logp"]) == 1, "the earlier revision is as it was"


@pytest.mark.requirement("F11.21")
def test_dropping_leaves_documents_of_probes_as_they_are(cache: Path) -> None:
    before = {path.name: path.read_bytes() for path in (cache / "probes").iterdir()}
    drop_from_cache(cache, views=["1"], teachers=["red"])
    assert {path.name: path.read_bytes() for path in (cache / "probes").iterdir()} == before
    root = json.loads((cache / "zarr.json").read_text())["attributes"]["logitcache"]
    assert not root.get("dropping")
    revision = json.loads((cache / f"revisions/{root['revision']['number']}.json").read_text())
    assert not [name for name in revision["ledgers"] if name.startswith("teachers/red/")]
    assert not [key for key in revision["metadata"] if key.startswith("teachers/red/")]
    assert not list((cache / "commits/teachers").glob("red/**/*.json"))
