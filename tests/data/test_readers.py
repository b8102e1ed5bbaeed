from __future__ import annotations

import subprocess
import sys
import tarfile
from typing import TYPE_CHECKING

import numpy as np
import pytest

from logitcache.data.identity import content_digest
from logitcache.data.readers import DataConfig, open_source
from logitcache.data.readers.arrays import ArraySource, DigitsSource
from logitcache.errors import DataError, UsageError
from logitcache.testing import SourceContract
from tests.conftest import jpeg, shape_image, write_images

if TYPE_CHECKING:
    from pathlib import Path

    from logitcache.data.source import Source


class TestFolder(SourceContract):
    @pytest.fixture
    def source(self, images: Path) -> Source:
        return open_source(str(images))


class TestTar(SourceContract):
    @pytest.fixture
    def source(self, images: Path, tmp_path: Path) -> Source:
        return open_source(str(tar_of(images, tmp_path / "images.tar")))


class TestDigits(SourceContract):
    @pytest.fixture
    def source(self) -> Source:
        return open_source("digits")


class TestArrays(SourceContract):
    @pytest.fixture
    def source(self) -> Source:
        images = [np.full((4, 5, 3), i, dtype=np.uint8) for i in range(12)]
        return ArraySource("arrays", "train", images, np.zeros(12, np.int32), ["one"])


class TestSubset(SourceContract):
    @pytest.fixture
    def source(self, images: Path) -> Source:
        return open_source(DataConfig(name=str(images), limit=15))


class TestClasses(SourceContract):
    @pytest.fixture
    def source(self, images: Path) -> Source:
        return open_source(DataConfig(name=str(images), classes=["dog", "bird"]))


def test_images_of_some_classes_have_these_alone_in_the_order_given(images: Path) -> None:
    every = open_source(str(images))
    some = open_source(DataConfig(name=str(images), classes=["dog", "bird"]))
    assert list(some.class_names) == ["dog", "bird"]
    kept = [key for key in every.keys if not key.startswith("cat/")]
    assert list(some.keys) == kept
    assert some.labels.tolist() == [1 if key.startswith("bird/") else 0 for key in kept]
    few = open_source(DataConfig(name=str(images), classes=["dog", "bird"], limit=7))
    assert len(few.keys) == 7
    assert set(few.keys) < set(kept)


def test_a_class_that_no_image_has_is_named(images: Path) -> None:
    with pytest.raises(UsageError, match="no class 'dig'") as caught:
        open_source(DataConfig(name=str(images), classes=["cat", "dig"]))
    assert "did you mean 'dog'" in str(caught.value.hint)


def tar_of(folder: Path, path: Path) -> Path:
    with tarfile.open(path, "w") as tar:
        tar.add(folder, arcname=".")
    return path


@pytest.mark.requirement("F3.1")
def test_a_tar_and_its_folder_have_the_same_keys_labels_and_images(
    images: Path, tmp_path: Path
) -> None:
    folder = open_source(str(images))
    tar = open_source(str(tar_of(images, tmp_path / "x.tar")))
    assert list(tar.class_names) == list(folder.class_names) == ["bird", "cat", "dog"]
    position = {key: index for index, key in enumerate(tar.keys)}
    assert position.keys() == set(folder.keys)
    for index, key in enumerate(folder.keys):
        assert tar.labels[position[key]] == folder.labels[index]
        assert tar.read(position[key]) == folder.read(index)


def test_a_tar_within_a_tar_is_read_at_the_right_place(images: Path, tmp_path: Path) -> None:
    inner = tar_of(images / "cat", tmp_path / "cat.tar")
    outer = tmp_path / "outer.tar"
    with tarfile.open(outer, "w") as tar:
        tar.add(inner, arcname="cat.tar")
    source = open_source(str(outer))
    assert source.read(3) == (images / "cat" / "003.jpg").read_bytes()


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    for index in range(3):
        (tmp_path / f"{index}.jpg").write_bytes(jpeg(shape_image(index)))
    source = open_source(str(tmp_path))
    assert source.labels.tolist() == [-1, -1, -1]
    assert list(source.class_names) == []


def test_digits_are_split_without_overlap() -> None:
    train, val = DigitsSource("train"), DigitsSource("val")
    assert (len(train.keys), len(val.keys)) == (1347, 450)
    digests = [{content_digest(s.read(i)) for i in range(len(s.keys))} for s in (train, val)]
    assert len(digests[0] & digests[1]) < 3  # a few digits look exactly alike
    assert np.bincount(train.labels).min() > 100


def test_a_limit_takes_the_same_images_whatever_the_folder_is_called(
    images: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "elsewhere"
    moved.symlink_to(images)
    here = open_source(DataConfig(name=str(images), limit=20))
    there = open_source(DataConfig(name=str(moved), limit=20))
    assert here.keys == there.keys
    assert len(here.class_names) == 3


@pytest.mark.requirement("F3.1")
def test_names_are_normalized(tmp_path: Path) -> None:
    decomposed = "cafe\u0301"
    write_images(tmp_path, 1, (decomposed,))
    assert open_source(str(tmp_path)).keys == ["caf\u00e9/000.jpg"]


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("digitz", UsageError, "unknown image set"),
        ("/no/such/folder", DataError, "does not exist"),
        ("torch/cifar11:/x", UsageError, "cifar10"),
        ("torch/cifar10", UsageError, "is not given"),
        ("torch/cifar10:/no/such/folder", DataError, "torchvision cannot find"),
    ],
)
def test_a_name_that_means_nothing(name: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        open_source(name)


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no images found"):
        open_source(str(tmp_path))


def test_an_empty_tar(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="no images found"):
        open_source(str(tar_of(tmp_path / "folder", tmp_path / "x.tar")))


def test_a_damaged_tar(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(DataError, match="tar file cannot be read"):
        open_source(str(tmp_path / "x.tar"))


def test_a_compressed_tar(tmp_path: Path) -> None:
    (tmp_path / "x.tar.gz").write_bytes(b"x")
    with pytest.raises(DataError, match="no random access"):
        open_source(str(tmp_path / "x.tar.gz"))


def test_images_both_in_folders_and_beside_them(tmp_path: Path) -> None:
    write_images(tmp_path, 1)
    (tmp_path / "stray.jpg").write_bytes(jpeg(shape_image(0)))
    with pytest.raises(DataError, match="and some are not"):
        open_source(str(tmp_path))


def test_opening_images_does_not_import_torch() -> None:
    """Commands that only list or compare images start in a fraction of a second."""
    code = "import sys, logitcache.data.readers; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
