"""Label sets in a cache: stored, sealed, compared, extended, and refused by older readers."""

from __future__ import annotations

import hashlib
import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zarr

from logitcache import verify
from logitcache.cache.format import manifest as manifest_module
from logitcache.cache.format.names import FEATURES
from logitcache.cache.format.samples import label_set_arrays, label_width, sample_fault
from logitcache.cache.read.reader import open_cache
from logitcache.data.readers import DataConfig
from logitcache.errors import CacheError, DataError, DataMismatch, UnsupportedFormat
from logitcache.label_sets import LabelSets
from logitcache.precompute.build import build_cache
from logitcache.precompute.config import PrecomputeConfig
from tests.conftest import write_images, write_teacher
from tests.label_set_images import TAGS, sets_of, write_listing

if TYPE_CHECKING:
    from pathlib import Path

Values = dict[str, Any]


@pytest.fixture(scope="module")
def values(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Values:
    """Return the configuration of a cache of label sets that is written."""
    root = tmp_path_factory.mktemp("label-sets")
    teacher = write_teacher(root / "teacher", classes=len(TAGS), model="cnn")
    values = {
        "cache": str(root / "cache"),
        "data": write_listing(images, root / "t.jsonl"),
        "teachers": {"t": {"model": f"local-dir:{teacher}"}},
        "unit_rows": 16,
    }
    build_cache(PrecomputeConfig.parse(values, ""))
    return values


def root_of(cache: Path | str) -> Values:
    found: Any = dict(zarr.open_group(str(cache), mode="r").attrs)
    values: Values = found["logitcache"]
    return values


def edit_root(cache: Path, change: Values) -> None:
    document = json.loads((cache / "zarr.json").read_text())
    for path, value in change.items():
        *above, name = path.split(".")
        place = document["attributes"]["logitcache"]
        for part in above:
            place = place[part]
        if value is None:
            del place[name]
        else:
            place[name] = value
    (cache / "zarr.json").write_text(json.dumps(document))


@pytest.mark.requirement("F2.5.4", "F4.11", "F4.12", "F4.13", "F12.2")
def test_sets_are_stored_as_the_format_defines_them(values: Values, images: Path) -> None:
    cache, sets = values["cache"], sets_of(images)
    root = root_of(cache)
    assert "label-sets" in root["requires"]
    assert root["format"] == 2
    width = root["data"]["label_width"]
    assert width == len(TAGS)  # no image can have more
    arrays: dict[str, Any] = {
        name: zarr.open_array(cache, path=f"samples/{name}", mode="r")[:]
        for name in ("key", "label", "label_count", "label_ids", "status")
    }
    assert (arrays["label"] == -1).all()
    assert arrays["label_ids"].shape == (64, width)
    listed = b""
    for key, count, ids in zip(
        arrays["key"].tolist(), arrays["label_count"].tolist(), arrays["label_ids"], strict=True
    ):
        tags = sets.get(key)
        numbers = [TAGS.index(tag) for tag in tags or ()]
        assert count == (-1 if tags is None else len(tags))
        assert ids.tolist() == numbers + [0] * (width - len(numbers))
        if key:
            text = "-1" if tags is None else ",".join(map(str, numbers))
            listed += f"{key}\0{text}\0".encode()
    assert root["segments"][0]["listing_sha256"] == hashlib.sha256(listed).hexdigest()


def test_a_reader_returns_the_sets(values: Values, images: Path) -> None:
    cache, sets = open_cache(values["cache"]), sets_of(images)
    found = cache.samples.label_sets
    assert found is not None
    for row in cache.samples.rows.tolist():
        labels, tags = found[row], sets[cache.samples.keys[row]]
        assert (None if labels is None else [TAGS[n] for n in labels]) == tags
    assert {None, ()} <= {None if one is None else tuple(one) for one in sets.values()}


@pytest.mark.requirement("F2.2", "F2.5.4")
def test_a_reader_that_does_not_know_label_sets_refuses_them(
    values: Values, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = {name: what for name, what in FEATURES.items() if name != "label-sets"}
    monkeypatch.setattr(manifest_module, "FEATURES", older)
    with pytest.raises(UnsupportedFormat, match="label-sets"):
        open_cache(values["cache"])


@pytest.mark.requirement("F4.11", "F4.13")
def test_a_cache_of_one_class_per_image_is_as_before(
    images: Path, teachers: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    given = {"cache": str(tmp_path / "c"), "data": str(images), "unit_rows": 16}
    build_cache(PrecomputeConfig.parse({**given, "teachers": teachers}, ""))
    root = root_of(tmp_path / "c")
    assert root["requires"] == ["decoding-2"]
    assert "label_width" not in root["data"]
    assert not list((tmp_path / "c" / "samples").glob("label_*"))
    assert open_cache(tmp_path / "c").samples.label_sets is None


@pytest.mark.requirement("F4.11")
@pytest.mark.parametrize(
    "change",
    [
        {"requires": ["decoding-2"]},
        {"data.label_width": None},
        {"data.label_width": 0},
        {"data.label_width": 1025},
        {"data.label_width": 2.5},
    ],
)
def test_a_root_with_half_of_what_sets_need_is_refused(
    values: Values, tmp_path: Path, change: Values
) -> None:
    edit_root(shutil.copytree(values["cache"], tmp_path / "cache"), change)
    with pytest.raises(CacheError, match="manifest is damaged"):
        open_cache(tmp_path / "cache")


@pytest.mark.parametrize(
    ("sizes", "classes", "width"),
    [((0,), 80, 4), ((1, 2), 80, 4), ((3,), 80, 8), ((9, 1), 80, 32), ((3,), 3, 3), ((0,), 0, 1)],
)
def test_there_is_room_for_twice_as_many_classes(
    sizes: tuple[int, ...], classes: int, width: int
) -> None:
    sets = LabelSets.of(range(size) for size in sizes)
    assert label_width(sets, classes, "") == width
    assert label_width(None, classes, "") is None


def test_an_image_of_more_classes_than_a_cache_can_have_is_refused() -> None:
    sets = LabelSets.of([range(1025)])
    with pytest.raises(DataError, match=r"more classes[\s\S]*at most 1024[\s\S]*1025 classes"):
        label_width(sets, 2000, "set")


@pytest.mark.requirement("F4.12", "F4.13")
@pytest.mark.parametrize(
    ("name", "at", "value", "fault"),
    [
        ("label_count", (0,), 5, "from 0 to 5 classes"),
        ("label_count", (0,), -2, "from -2 to 2 classes"),
        ("label_count", (0,), 3, "not ascending"),
        ("label_ids", (1, 0), 9, "not ascending numbers below 4"),
        ("label_ids", (1, 1), 0, "not ascending"),
        ("label_ids", (2, 3), 1, "not ascending"),
    ],
)
def test_impossible_sets_are_damage(name: str, at: tuple[int, ...], value: int, fault: str) -> None:
    arrays = label_set_arrays(LabelSets.of([{0, 1}, {2, 3}, set()]), 4)
    assert sample_fault(arrays, 4) is None
    arrays[name][at] = value
    found = sample_fault(arrays, 4)
    assert found is not None
    assert fault in found


def test_images_are_added_as_far_as_there_is_room(values: Values, tmp_path: Path) -> None:
    write_images(tmp_path / "images", 6)
    sets: dict[str, list[str] | None] = {key: ["cat"] for key in sets_of(tmp_path / "images")}
    first = {key: tags for key, tags in sets.items() if key < "dog/000.jpg"}
    names = [*TAGS, *(f"more-{n}" for n in range(6))]
    (tmp_path / "names.txt").write_text("\n".join(names))
    more = {**values, "cache": str(tmp_path / "cache")}

    def build(listed: dict[str, list[str] | None]) -> None:
        data = write_listing(tmp_path / "images", tmp_path / "t.jsonl", listed)
        teacher = write_teacher(tmp_path / "teacher", classes=len(names), model="cnn")
        config = {
            **more,
            "data": {**data, "class_list": str(tmp_path / "names.txt")},
            "teachers": {"t": {"model": f"local-dir:{teacher}"}},
        }
        build_cache(PrecomputeConfig.parse(config, ""))

    build(first)
    with pytest.raises(DataError, match=r"room for[\s\S]*at most 4 classes[\s\S]*got: +5 classes"):
        build({**sets, "dog/005.jpg": names[:5]})
    build({**sets, "dog/005.jpg": names[:4]})
    samples = open_cache(tmp_path / "cache").samples
    assert samples.label_sets is not None
    (row,) = np.flatnonzero(samples.keys == "dog/005.jpg")
    assert samples.label_sets[int(row)] == [0, 1, 2, 3]


def test_one_class_per_image_does_not_extend_sets(values: Values, images: Path) -> None:
    with pytest.raises(DataMismatch, match=r"another kind[\s\S]*sets of classes"):
        build_cache(PrecomputeConfig.parse({**values, "data": str(images)}, ""))


def test_verifying_names_images_with_other_classes(
    values: Values, images: Path, tmp_path: Path
) -> None:
    sets = sets_of(images)
    key = next(key for key, tags in sets.items() if tags and "house" not in tags)
    data = write_listing(images, tmp_path / "t.jsonl", {**sets, key: ["house"]})
    report = verify(values["cache"], data=DataConfig(**data), quick=True)
    assert report.images is not None
    assert report.images.relabeled == (key,)
    same = verify(values["cache"], data=DataConfig(**values["data"]), quick=True)
    assert same.images is not None
    assert same.images.ok
