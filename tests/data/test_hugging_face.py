"""Hugging Face data sets: saved folders, names in the cache of datasets, columns and keys."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from logitcache.data.readers import DataConfig, has_splits, open_source
from logitcache.data.readers.hugging_face import HuggingFaceSource
from logitcache.data.source import notes_of
from logitcache.errors import DataError, LogitcacheError, UnreadableImage, UsageError
from logitcache.testing import SourceContract
from tests.conftest import jpeg, shape_image
from tests.data.forms import saved_dataset

if TYPE_CHECKING:
    from pathlib import Path

    from logitcache.data.source import Source

datasets = pytest.importorskip("datasets")
CLASSES = datasets.ClassLabel(names=["zebra", "ant"])


@pytest.fixture(scope="module")
def saved(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_dataset(images, tmp_path_factory.mktemp("datasets") / "saved")


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


def encoded(count: int, *paths: str | None) -> list[dict[str, Any]]:
    """Return images as a data set stores them."""
    contents = [jpeg(shape_image(index)) for index in range(count)]
    named = paths or (None,) * count
    return [{"bytes": c, "path": path} for c, path in zip(contents, named, strict=True)]


def opened(folder: Path, columns: dict[str, Any], kinds: dict[str, Any], **fields: Any) -> Source:
    """Save a data set without splits, and open it."""
    features = datasets.Features({"image": datasets.Image(), **kinds})
    datasets.Dataset.from_dict(columns, features).save_to_disk(folder)
    return open_source(DataConfig(name=str(folder), **fields))


class TestSaved(SourceContract):
    @pytest.fixture
    def source(self, saved: Path) -> Source:
        return open_source(str(saved))


class TestFiles(SourceContract):
    """A data set that has paths instead of bytes, as before it is saved."""

    @pytest.fixture
    def source(self, images: Path, cached: Path) -> Source:
        del cached
        return open_source("hfds/me/files")


@pytest.fixture
def cached(saved: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a cache of datasets with the data sets me/pets and me/files."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    for name in ("pets", "files"):
        place = tmp_path / f"me___{name}" / "default" / "0.0.0" / "0123456789abcdef"
        place.mkdir(parents=True)
        pets = datasets.load_from_disk(saved)["train"]
        info = pets.info
        info.builder_name, info.dataset_name, info.config_name = "parquet", name, "default"
        info.version = datasets.Version("0.0.0")
        split = {"name": "train", "num_bytes": 1, "num_examples": 60, "dataset_name": name}
        info.splits = datasets.SplitDict.from_split_dict([split])
        info.write_to_directory(str(place))
        content = saved / "train" / "data-00000-of-00001.arrow"
        if name == "files":
            features = pets.features
            columns = {
                "image": [str(file) for file in sorted(images.rglob("*.jpg"))],
                "label": pets["label"],
            }
            files = datasets.Dataset.from_dict(columns, features)
            content = tmp_path / "files.arrow"
            writer = datasets.arrow_writer.ArrowWriter(features=features, path=str(content))
            writer.write_table(files.data.table)
            writer.finalize()
        shutil.copy(content, place / f"{name}-train.arrow")
    return tmp_path


@pytest.mark.parametrize("name", ["hfds/me/pets", "hfds/me/files", "hfds/me/pets:default"])
def test_a_name_in_the_cache_of_datasets_is_the_folder(
    images: Path, cached: Path, name: str
) -> None:
    source, folder = open_source(name), open_source(str(images))
    assert list(source.keys) == list(folder.keys)
    np.testing.assert_array_equal(source.labels, folder.labels)
    np.testing.assert_array_equal(source.sizes, folder.sizes)
    assert all(source.read(index) == folder.read(index) for index in range(60))


def test_a_name_that_needs_the_network(cached: Path) -> None:
    with pytest.raises(
        DataError, match=r"cannot be loaded[\s\S]*hfds/me/cats[\s\S]*reach[\s\S]*next:"
    ):
        open_source("hfds/me/cats")
    with pytest.raises(DataError, match=r"cannot be loaded[\s\S]*config 'other'"):
        open_source("hfds/me/pets:other")


def test_a_script_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "pets").mkdir()
    (tmp_path / "pets" / "pets.py").write_text("raise SystemExit('it was run')")
    with pytest.raises(DataError, match=r"cannot be loaded[\s\S]*no script[\s\S]*RuntimeError"):
        open_source(f"hfds/{tmp_path}/pets")


def test_splits(saved: Path, images: Path, tmp_path: Path) -> None:
    assert has_splits(str(saved))
    with pytest.raises(DataError, match=r"no split 'val'[\s\S]*validation[\s\S]*got:\s+train"):
        open_source(DataConfig(name=str(saved), split="val"))
    train = datasets.load_from_disk(saved)["train"]
    both = datasets.DatasetDict(train=train.select(range(40)), test=train.select(range(40, 60)))
    both.save_to_disk(tmp_path / "both")
    source = open_source(DataConfig(name=str(tmp_path / "both"), split="val"))
    assert len(source.keys) == 20
    assert notes_of(source) == ["the split 'test' is used as 'val'"]
    assert list(source.class_names) == ["bird", "cat", "dog"], "of all splits"
    assert source.read(0) == open_source(str(images)).read(40), "rows are those of the selection"


def test_keys_are_class_and_file_name_or_numbers(tmp_path: Path) -> None:
    labels: dict[str, Any] = {"label": CLASSES}
    named = encoded(3, "x/a.jpg", "y/a.jpg", "/z/b.jpg")
    source = opened(tmp_path / "1", {"image": named, "label": [0, 1, None]}, labels)
    assert list(source.keys) == ["zebra/a.jpg", "ant/a.jpg", "b.jpg"]
    assert source.labels.tolist() == [0, 1, -1]
    assert notes_of(source) == ["1 images of the data set have no label"]
    source = opened(tmp_path / "2", {"image": named, "label": [0, 0, 1]}, labels)
    assert list(source.keys) == [f"train/{index:09d}" for index in range(3)], "a.jpg twice"
    columns = {"image": encoded(2), "label": [0, 1], "id": ["n1\\1.jpg", "./n2/1.jpg"]}
    kinds = {**labels, "id": datasets.Value("string")}
    source = opened(tmp_path / "3", columns, kinds, path_column="id")
    assert list(source.keys) == ["n1/1.jpg", "n2/1.jpg"]
    source = opened(tmp_path / "4", {"image": encoded(2, "a.jpg", "b.jpg")}, {})
    assert (list(source.keys), list(source.class_names)) == (["a.jpg", "b.jpg"], [])
    assert notes_of(source) == []


def test_columns_that_may_have_the_classes_are_named(tmp_path: Path) -> None:
    columns = {"image": encoded(2, "a.jpg", "b.jpg"), "kind": ["x", "y"]}
    source = opened(tmp_path / "1", columns, {"kind": datasets.Value("string")})
    (note,) = notes_of(source)
    assert "no column label" in note
    assert "from kind: --set data.label_column=NAME" in note


def test_which_column_has_the_classes(tmp_path: Path) -> None:
    columns = {"image": encoded(2), "fine": [1, 0], "coarse": ["b", "a"], "n": [10, 2]}
    text, number = datasets.Value("string"), datasets.Value("int64")
    kinds = {"fine": CLASSES, "coarse": text, "n": number}
    source = opened(tmp_path / "1", columns, kinds)
    assert (source.labels.tolist(), list(source.class_names)) == ([1, 0], ["zebra", "ant"])
    (tmp_path / "classes.txt").write_text("ant\ncat\nzebra")
    (tmp_path / "numbers.txt").write_text("\n".join("abcdefghijk"))
    for column, fields, labels, names in (
        ("coarse", {}, [1, 0], ["a", "b"]),
        ("n", {}, [1, 0], ["2", "10"]),
        ("n", {"class_list": "numbers.txt"}, [10, 2], list("abcdefghijk")),
        ("fine", {"class_list": "classes.txt"}, [0, 2], ["ant", "cat", "zebra"]),
    ):
        paths = {key: str(tmp_path / value) for key, value in fields.items()}
        config = DataConfig(name=str(tmp_path / "1"), label_column=column, **paths)
        source = open_source(config)
        assert (source.labels.tolist(), list(source.class_names)) == (labels, names)


TEXT, IMAGE = datasets.Value("string"), datasets.Image()


@pytest.mark.parametrize(
    ("columns", "kinds", "fields", "message"),
    [
        ({"image": ["http://x.org/a.jpg"]}, {"image": TEXT}, {}, r"no images[\s\S]*image: Value"),
        ({"image": ["x"]}, {"image": TEXT}, {"image_column": "image"}, r"'image' has no images"),
        ({"a": encoded(1), "b": encoded(1)}, {"a": IMAGE, "b": IMAGE}, {}, r"images[\s\S]*clear"),
        ({"image": encoded(1)}, {}, {"image_column": "img"}, r"no column 'img'[\s\S]*image"),
        ({"image": encoded(1)}, {}, {"label_column": "y"}, r"no column 'y'[\s\S]*image"),
        (
            {"image": encoded(1), "x": [0], "y": [0]},
            {"x": CLASSES, "y": CLASSES},
            {},
            r"labels of the images is not clear[\s\S]*x, y[\s\S]*label_column",
        ),
        (
            {"image": encoded(1), "label": [[0.5, 1.0]]},
            {"label": datasets.List(datasets.Value("float32"))},
            {},
            r"'label' of the data set has no classes[\s\S]*List",
        ),
        (
            {"image": encoded(1), "label": [1.5]},
            {"label": datasets.Value("float32")},
            {},
            r"has no classes[\s\S]*float32",
        ),
        (
            {"image": encoded(2), "id": ["a", "a"]},
            {"id": TEXT},
            {"path_column": "id"},
            r"'id' are not unique[\s\S]*a",
        ),
        (
            {"image": encoded(2), "id": ["a", None]},
            {"id": TEXT},
            {"path_column": "id"},
            r"rows without a path",
        ),
        ({"image": encoded(1, "..")}, {}, {}, "leads out of the root"),
        ({"image": [*encoded(1), None]}, {}, {}, r"1 images[\s\S]*exist[\s\S]*no bytes \(row 1\)"),
    ],
)
def test_what_cannot_be_meant_is_named(
    tmp_path: Path,
    columns: dict[str, list[Any]],
    kinds: dict[str, Any],
    fields: dict[str, str],
    message: str,
) -> None:
    features = datasets.Features({"image": IMAGE, **kinds} if "image" in columns else kinds)
    datasets.Dataset.from_dict(columns, features).save_to_disk(tmp_path)
    with pytest.raises(LogitcacheError, match=message):
        open_source(DataConfig(name=str(tmp_path), **fields))


def test_images_that_do_not_exist_are_counted(images: Path, cached: Path) -> None:
    gone = [images / "cat" / f"{index:03d}.jpg" for index in range(7)]
    for file in gone:
        file.rename(file.with_suffix(".hidden"))
    try:
        with pytest.raises(
            DataError, match=r"7 images of the data set do not exist[\s\S]*cat/000.jpg \(row 20\)"
        ):
            open_source("hfds/me/files")
    finally:
        for file in gone:
            file.with_suffix(".hidden").rename(file)


def test_a_saved_folder_that_is_damaged(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "copy")
    content = tmp_path / "copy" / "train" / "data-00000-of-00001.arrow"
    content.write_bytes(content.read_bytes()[:1000])
    with pytest.raises(DataError, match="saved data set cannot be read"):
        open_source(str(tmp_path / "copy"))
    (tmp_path / "copy" / "train" / "state.json").unlink()
    with pytest.raises(DataError, match="saved data set cannot be read"):
        open_source(str(tmp_path / "copy"))


def test_values_that_are_damaged(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "copy")
    content = tmp_path / "copy" / "train" / "data-00000-of-00001.arrow"
    encoded_name = content.read_bytes().replace(b"003.jpg", b"\xff03.jpg", 1)
    content.write_bytes(encoded_name)
    with pytest.raises(DataError, match=r"data set is damaged[\s\S]*UTF8"):
        open_source(str(tmp_path / "copy"))
    shutil.copytree(saved, tmp_path / "other")
    source = open_source(str(tmp_path / "other"))
    source._images = datasets.load_from_disk(tmp_path / "copy")["train"]  # type: ignore[attr-defined]
    with pytest.raises(UnreadableImage, match=r"damaged[\s\S]*bird/003.jpg in saved data set"):
        source.read(3)


def test_a_number_that_is_no_class() -> None:
    features = datasets.Features(image=IMAGE, label=CLASSES)
    table = datasets.Dataset.from_dict({"image": encoded(2), "label": [0, 1]}, features).data.table
    numbers = table.set_column(1, "label", [[1, 7]])
    with pytest.raises(DataError, match=r"not among its classes[\s\S]*0 to 1: zebra, ant[\s\S]*7"):
        open_source(datasets.Dataset(numbers.cast(table.schema)))


def test_a_data_set_without_rows() -> None:
    empty = datasets.Dataset.from_dict({"image": []}, datasets.Features(image=IMAGE))
    with pytest.raises(DataError, match=r"no images[\s\S]*none of it"):
        HuggingFaceSource(empty, DataConfig(name="-"), "none of it")


def test_without_the_library(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    for name in (str(saved), "hfds/me/pets"):
        with pytest.raises(UsageError, match=r"datasets, which[\s\S]*logitcache\[datasets\]"):
            open_source(name)


def test_a_data_set_from_python(saved: Path, images: Path) -> None:
    both = datasets.load_from_disk(saved)
    source, folder = open_source(both["train"]), open_source(str(images))
    assert list(source.keys) == list(folder.keys)
    assert source.read(9) == folder.read(9)
    shuffled = open_source(both["train"].shuffle(seed=1))
    assert list(shuffled.keys) != list(folder.keys)
    at = list(shuffled.keys).index(folder.keys[9])
    assert (shuffled.read(at), shuffled.sizes[at]) == (folder.read(9), folder.sizes[9])
    with pytest.raises(UsageError, match=r"DatasetDict[\s\S]*\['train'\]"):
        open_source(both)
