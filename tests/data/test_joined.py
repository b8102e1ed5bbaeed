"""Several image sets as one, and images without their labels."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING

import numpy as np
import pytest

from logitcache.data.readers import DataConfig, open_source
from logitcache.errors import DataError, UsageError
from logitcache.testing import SourceContract
from tests.conftest import write_images

if TYPE_CHECKING:
    from pathlib import Path

    from logitcache.data.source import Source


@pytest.fixture
def folders(tmp_path: Path) -> tuple[str, str]:
    """Return two folders that share one of their classes."""
    a = write_images(tmp_path / "a", 3, ("cat", "dog"))
    b = write_images(tmp_path / "b", 2, ("bird", "cat"))
    return str(a), str(b)


def joined(a: str, b: str, **fields: object) -> DataConfig:
    return DataConfig.parse({"parts": {"real": a, "other": {"name": b, **fields}}}, "data")


class TestJoined(SourceContract):
    @pytest.fixture
    def source(self, folders: tuple[str, str]) -> Source:
        return open_source(joined(*folders))


def test_images_and_classes_are_those_of_the_parts(folders: tuple[str, str]) -> None:
    source, parts = open_source(joined(*folders)), [open_source(folder) for folder in folders]
    assert source.class_names == ["bird", "cat", "dog"]
    expected = [
        (f"{name}/{key}", part.class_names[part.labels[i]], part.sizes[i], part.read(i))
        for name, part in zip(("real", "other"), parts, strict=True)
        for i, key in enumerate(part.keys)
    ]
    found = [
        (key, source.class_names[source.labels[i]], source.sizes[i], source.read(i))
        for i, key in enumerate(source.keys)
    ]
    assert found == expected


def test_a_part_without_labels_has_no_classes_either(folders: tuple[str, str]) -> None:
    source = open_source(joined(*folders, unlabeled=True))
    assert source.class_names == ["cat", "dog"]
    assert source.labels.tolist() == [0, 0, 0, 1, 1, 1, -1, -1, -1, -1]
    alone = open_source(DataConfig.parse({"name": folders[1], "unlabeled": True}, "data"))
    assert (alone.labels.tolist(), list(alone.class_names)) == ([-1] * 4, [])
    again = pickle.loads(pickle.dumps(source))
    assert all(np.array_equal(source.read(i), again.read(i)) for i in (0, 5, 6, 9))


def test_parts_may_be_limited_and_joined_themselves(folders: tuple[str, str]) -> None:
    inner = {"parts": {"x": {"name": folders[0], "limit": 2}}}
    source = open_source(DataConfig.parse({"parts": {"p": inner, "q": folders[1]}}, "data"))
    assert [key.partition("/")[0] for key in source.keys] == ["p"] * 2 + ["q"] * 4
    assert source.keys[0].startswith("p/x/")


def test_settings_of_joined_sets_are_checked(folders: tuple[str, str]) -> None:
    with pytest.raises(UsageError, match="a joined set needs parts"):
        DataConfig.parse({"name": "joined"}, "data")
    with pytest.raises(UsageError, match="parts can only be set for joined"):
        DataConfig.parse({"name": "digits", "parts": {"a": folders[0]}}, "data")
    with pytest.raises(UsageError, match="a/b"):
        DataConfig.parse({"parts": {"a/b": folders[0]}}, "data")


def test_label_sets_cannot_be_joined(folders: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,label\na/cat/000.jpg,x;y\n")
    table = {"name": str(tmp_path / "t.csv"), "label_separator": ";"}
    config = DataConfig.parse({"parts": {"a": folders[0], "t": table}}, "data")
    with pytest.raises(DataError, match=r"several classes cannot be joined[\s\S]*part t"):
        open_source(config)
