"""Contract of a reader of image sets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from logitcache.data.readers import DataConfig, open_source
from logitcache.errors import LogitcacheError
from logitcache.testing.source import SourceContract

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from logitcache.data.source import Source

    WriteSet = Callable[[Path, Path], DataConfig]

__all__ = ["ReaderContract", "write_example_images"]

_CLASSES = ("10", "9", "Cat", "caf\u00e9")
_PER_CLASS = 4


def write_example_images(folder: Path, *, classes: bool = True) -> Path:
    """Write sixteen small images, in class folders or without classes.

    Args:
        folder: The folder to make.
        classes: Whether to write one folder per class.

    Returns:
        The folder.
    """
    for number, name in enumerate(_CLASSES):
        for index in range(_PER_CLASS):
            path = folder / (f"{name}/{index}.ppm" if classes else f"{number}-{index}.ppm")
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.full((6, 8, 3), 50 * number + index, dtype=np.uint8)
            path.write_bytes(b"P6\n8 6\n255\n" + pixels.tobytes())
    return folder


class ReaderContract(SourceContract):
    """Tests that every reader of image sets passes, and those of its sources.

    Define a fixture ``write_set`` that returns a function. It is called with a folder of class
    folders, or of images without classes, and with an empty folder; it writes the images in the
    form that the reader reads into the latter, with the same names, and returns their
    configuration.
    """

    @pytest.fixture
    def source(self, write_set: WriteSet, tmp_path: Path) -> Source:
        """Return the example images in the form of the reader."""
        return _written(write_set, write_example_images(tmp_path / "images"), tmp_path / "set")

    def test_images_are_listed_as_in_their_folder(
        self, write_set: WriteSet, tmp_path: Path
    ) -> None:
        """Keys, class names, labels and bytes are those of a folder of class folders."""
        folder = write_example_images(tmp_path / "images")
        _compare(_written(write_set, folder, tmp_path / "set"), open_source(str(folder)))

    def test_images_without_classes_have_no_labels(
        self, write_set: WriteSet, tmp_path: Path
    ) -> None:
        """Keys and bytes are those of a folder of images; there are no classes."""
        folder = write_example_images(tmp_path / "images", classes=False)
        _compare(_written(write_set, folder, tmp_path / "set"), open_source(str(folder)))

    def test_a_limit_chooses_the_same_images_as_in_their_folder(
        self, write_set: WriteSet, tmp_path: Path
    ) -> None:
        """``limit`` goes by the hash of keys, so it is the same subset in every form."""
        folder = write_example_images(tmp_path / "images")
        config = _write(write_set, folder, tmp_path / "set").model_copy(update={"limit": 7})
        expected = open_source(DataConfig(name=str(folder), limit=7))
        assert sorted(open_source(config).keys) == sorted(expected.keys)

    def test_a_set_that_does_not_exist_is_an_error_of_the_user(
        self, write_set: WriteSet, tmp_path: Path
    ) -> None:
        """A wrong path raises a :class:`~logitcache.errors.LogitcacheError`."""
        config = _write(write_set, write_example_images(tmp_path / "images"), tmp_path / "set")
        (tmp_path / "set").rename(tmp_path / "moved")
        if str(tmp_path / "set") in config.name:
            with pytest.raises(LogitcacheError):
                open_source(config)


def _write(write_set: WriteSet, folder: Path, out: Path) -> DataConfig:
    out.mkdir()
    return write_set(folder, out)


def _written(write_set: WriteSet, folder: Path, out: Path) -> Source:
    return open_source(_write(write_set, folder, out))


def _compare(source: Source, folder: Source) -> None:
    """Compare a source with the folder of its images; the order of images does not matter."""
    position = {key: index for index, key in enumerate(source.keys)}
    assert sorted(position) == sorted(folder.keys)
    order = [position[key] for key in folder.keys]
    assert list(source.class_names) == list(folder.class_names)
    assert np.asarray(source.labels)[order].tolist() == folder.labels.tolist()
    assert all(source.read(order[index]) == folder.read(index) for index in range(len(order)))
