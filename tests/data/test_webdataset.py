"""WebDataset shards: samples, labels in members, and shards that overlap."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logitcache.data.readers import DataConfig, open_source
from logitcache.data.readers.shards import expand_braces
from logitcache.data.source import left_out_of, notes_of
from logitcache.errors import DataError, LogitcacheError, UsageError
from logitcache.testing import SourceContract
from tests.conftest import jpeg, shape_image
from tests.data.forms import write_shards, write_tar

if TYPE_CHECKING:
    from pathlib import Path

    from logitcache.data.source import Source

JPEG = jpeg(shape_image(0))
Members = dict[str, bytes]


def write(path: Path, members: Members) -> Path:
    return write_tar(path, members.items())


def opened(folder: Path, **fields: Any) -> Source:
    return open_source(DataConfig(name=f"wds/{folder}", **fields))


class TestShards(SourceContract):
    @pytest.fixture
    def source(self, images: Path, tmp_path: Path) -> Source:
        write_shards(images, str(tmp_path / "{}.tar"), 4, lambda name: ("cls", name.encode()))
        return opened(tmp_path)


def test_the_number_of_shards_does_not_matter(images: Path, tmp_path: Path) -> None:
    sources = []
    for count in (1, 7):
        folder = tmp_path / str(count)
        folder.mkdir()
        write_shards(images, f"{folder}/{{}}.tar", count, lambda name: ("txt", name.encode()))
        sources.append(opened(folder, label_column="txt"))
    one, seven = sources
    assert list(one.keys) == list(seven.keys)
    assert one.labels.tolist() == seven.labels.tolist()
    assert all(one.read(index) == seven.read(index) for index in range(60))


def test_numbers_are_named_by_a_list_of_classes(images: Path, tmp_path: Path) -> None:
    names = ["dog", "bird", "cat"]
    (tmp_path / "classes.txt").write_text("\n".join(names))

    def label(name: str) -> tuple[str, bytes]:
        return "json", json.dumps({"y": names.index(name), "label": "no"}).encode()

    write_shards(images, str(tmp_path / "{}.tar"), 2, label)
    source = opened(tmp_path, label_column="y", class_list=str(tmp_path / "classes.txt"))
    folder = open_source(str(images))
    assert list(source.class_names) == names
    found = {k: names[label] for k, label in zip(source.keys, source.labels, strict=True)}
    assert found == {key: key.partition("/")[0] for key in folder.keys}


def test_which_labels_are_used(tmp_path: Path) -> None:
    """Those of .cls files, of .json files, of the folders, or the ones that are chosen."""
    members = {
        "a/0.jpg": JPEG,
        "a/0.cls": b" 7\n",
        "a/0.json": b'{"Label": "cat", "width": 32}',
        "a/0.txt": b"a cat",
        "b/1.jpg": JPEG,
        "b/1.json": b'{"Label": null}',
        "b/1.txt": b"a dog",
    }
    write(tmp_path / "0.tar", members)

    def classes(**fields: Any) -> list[str]:
        source = opened(tmp_path, **fields)
        names = [*source.class_names, "-"]
        return [names[label] for label in source.labels]

    assert classes() == ["7", "-"]
    assert notes_of(opened(tmp_path)) == ["1 images of the shards have no label"]
    assert classes(label_column="Label") == ["cat", "-"]
    assert classes(label_column="txt") == ["a cat", "a dog"]
    assert left_out_of(opened(tmp_path)) == {
        ".txt files (data.label_column=txt reads labels from them)": 2
    }
    write(tmp_path / "0.tar", {k: v for k, v in members.items() if not k.endswith("cls")})
    assert classes() == ["cat", "-"]
    write(tmp_path / "0.tar", {k: v for k, v in members.items() if k.endswith(("jpg", "txt"))})
    assert classes() == ["a", "b"]
    assert classes(class_folder="last") == ["a", "b"]
    write(tmp_path / "0.tar", {"0.jpg": JPEG, "0.txt": b"a caption"})
    assert classes() == ["-"]


def test_several_images_of_a_sample(tmp_path: Path) -> None:
    sample = {"0.jpg": JPEG, "0.seg.png": JPEG, "0.cls": b"1", "1.JPG": JPEG, "1.cls": b"0"}
    write(tmp_path / "x.tar", sample)
    with pytest.raises(DataError, match=r"1 samples[\s\S]*\.jpg, \.seg\.png[\s\S]*=jpg"):
        opened(tmp_path)
    source = opened(tmp_path, image_column="jpg")
    assert list(source.keys) == ["0.jpg", "1.JPG"]
    assert source.labels.tolist() == [1, 0]
    assert left_out_of(source) == {".seg.png files": 1}


def test_an_extension_that_no_image_has(tmp_path: Path) -> None:
    write(tmp_path / "x.tar", {"0.jpg": JPEG, "0.cls": b"1"})
    with pytest.raises(DataError, match=r"no sample[\s\S]*image \.webp[\s\S]*=jpg"):
        opened(tmp_path, image_column="webp")


def test_a_folder_inside_of_the_shards(tmp_path: Path) -> None:
    write(tmp_path / "x.tar", {"set/cat/0.jpg": JPEG, "set/dog/1.jpg": JPEG, "other/2.jpg": JPEG})
    source = opened(tmp_path, root="set")
    assert (list(source.keys), list(source.class_names)) == (
        ["cat/0.jpg", "dog/1.jpg"],
        ["cat", "dog"],
    )


@pytest.mark.parametrize(
    ("shards", "message"),
    [
        (
            [{"0.jpg": JPEG, "1.jpg": JPEG}, {"1.jpg": JPEG, "2.jpg": JPEG}, {"0.jpg": JPEG}],
            r"2 samples of the shards occur twice[\s\S]*1 in 0.tar and 1.tar, 0 in 0.tar and 2.tar",
        ),
        ([{"./0.jpg": JPEG, "0.jpg": JPEG}], r"1 samples[\s\S]*0 in 0.tar\n"),
        ([{"0.cls": b"1"}], "no images found"),
        ([{"0.jpg": JPEG, "0.cls": b"\xff"}], r"label of the shards[\s\S]*0.cls in \S+0.tar"),
        ([{"0.jpg": JPEG, "0.cls": b"a\nb"}], r"label of the shards[\s\S]*3 characters: a\\nb"),
        ([{"0.jpg": JPEG, "0.cls": b"x" * 2000}], "2000 characters"),
        ([{"0.jpg": JPEG, "0.json": b"[1]"}], "JSON of type list"),
        ([{"0.jpg": JPEG, "0.json": b'{"label": [1, [2]]}'}], "label: a value of type list"),
        ([{"0.jpg": JPEG, "0.json": b'{"label": true}'}], "a value of type bool"),
        ([{"0.jpg": JPEG, "0.json": b'{"label": 1, "class": 2}'}], r"not clear[\s\S]*label_column"),
        ([{"0.jpg": JPEG, "0.json": b'{"label": 1, "label": 2}'}], "'label' is given 2 times"),
        ([{"0.jpg": JPEG, "0.json": b"[" * 100_000}], "label of the shards"),
        ([{"0.jpg": JPEG, "0.json": b" " * (2 << 20)}], "label of the shards"),
        ([{"../0.jpg": JPEG}], "leads out of the root"),
    ],
)
def test_what_cannot_be_meant_is_named(tmp_path: Path, shards: list[Members], message: str) -> None:
    for number, members in enumerate(shards):
        write(tmp_path / f"{number}.tar", members)
    with pytest.raises(LogitcacheError, match=message):
        opened(tmp_path)


def test_labels_that_are_not_there(tmp_path: Path) -> None:
    write(tmp_path / "x.tar", {"0.jpg": JPEG, "0.json": b'{"label": 1}'})
    for column in ("klass", "cls"):
        with pytest.raises(DataError, match=f"no sample of the shards has a label '{column}'"):
            opened(tmp_path, label_column=column)


def test_shards_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no shards"):
        opened(tmp_path)
    write(tmp_path / "x-00.tar", {"0.jpg": JPEG})
    (tmp_path / "x-01.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(DataError, match=r"shard cannot be read[\s\S]*x-01.tar"):
        opened(tmp_path)
    with pytest.raises(DataError, match=r"7 of 9 shards do not exist[\s\S]*x-02.tar, \S+"):
        open_source(f"{tmp_path}/x-{{00..08}}.tar")
    cut = write(tmp_path / "x-01.tar", {"1.jpg": JPEG})
    cut.write_bytes(cut.read_bytes()[:900])
    with pytest.raises(DataError, match=r"shard cannot be read[\s\S]*x-01.tar"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("x-{008..011}.tar", ["x-008.tar", "x-009.tar", "x-010.tar", "x-011.tar"]),
        ("{8..10}", ["8", "9", "10"]),
        ("{a,b}-{0..1}", ["a-0", "a-1", "b-0", "b-1"]),
        ("x{,y}", ["x", "xy"]),
        ("plain.tar", ["plain.tar"]),
    ],
)
def test_patterns_are_expanded(pattern: str, names: list[str]) -> None:
    assert expand_braces(pattern) == names


@pytest.mark.parametrize(
    "pattern", ["{5..3}.tar", "{a}.tar", "{a..b}.tar", "{.tar", "{{0..1}}.tar", "{0..1}{0..99999}"]
)
def test_patterns_that_are_none(pattern: str) -> None:
    with pytest.raises(UsageError, match="cannot be expanded"):
        expand_braces(pattern)


@given(st.text("{}.,019-a"))
def test_any_pattern_is_expanded_or_refused(pattern: str) -> None:
    try:
        names = expand_braces(pattern)
    except UsageError:
        return
    assert 1 <= len(names) <= 100_000
    assert not any(brace in name for name in names for brace in "{}")
