"""Zip files: the images of a folder under the same keys, read within bounds."""

from __future__ import annotations

import stat
import struct
import tarfile
import tracemalloc
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from logitcache.data.readers import DataConfig, open_source
from logitcache.data.source import left_out_of
from logitcache.errors import DataError, LogitcacheError, UnreadableImage
from logitcache.testing import SourceContract
from tests.conftest import jpeg, shape_image

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from logitcache.data.source import Source

JPEG = jpeg(shape_image(0))


def zip_of(folder: Path, path: Path, above: str = "", **options: Any) -> Path:
    """Write the files of a folder."""
    with zipfile.ZipFile(path, "w", **options) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, above + str(file.relative_to(folder)))
    return path


def zipped(path: Path, *names: str, **options: Any) -> Path:
    """Write one image under several names."""
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name in names:
            archive.writestr(name, JPEG)
    return path


class TestZip(SourceContract):
    @pytest.fixture(params=[zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    def source(self, images: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Source:
        return open_source(str(zip_of(images, tmp_path / "x.zip", compression=request.param)))


def test_a_zip_is_listed_as_its_extracted_folder(images: Path, tmp_path: Path) -> None:
    archive, folder = open_source(str(zip_of(images, tmp_path / "X.ZIP"))), open_source(str(images))
    assert list(archive.keys) == list(folder.keys)
    assert list(archive.class_names) == list(folder.class_names)
    np.testing.assert_array_equal(archive.labels, folder.labels)
    np.testing.assert_array_equal(archive.sizes, folder.sizes)
    assert all(archive.read(index) == folder.read(index) for index in range(60))


def test_what_is_no_image_is_counted_by_reason(tmp_path: Path) -> None:
    path = zipped(
        tmp_path / "x.zip", "cat/a.jpg", "cat/.b.jpg", "__MACOSX/cat/a.jpg", "cat/c.txt", "d.tar"
    )
    with zipfile.ZipFile(path, "a") as archive:
        link = zipfile.ZipInfo("cat/link.jpg")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "a.jpg")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("cat/a.jpg", jpeg(shape_image(1)))
    source = open_source(str(path))
    assert list(source.keys) == ["cat/a.jpg"]
    assert source.read(0) == jpeg(shape_image(1))
    assert left_out_of(source) == {
        "hidden names": 1,
        "__MACOSX folders": 1,
        ".txt files": 1,
        ".tar files": 1,
        "links and other members without content": 1,
        "replaced by a later member of the same name": 1,
    }


def test_backslashes_of_windows(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name in ("cat\\a.jpg", "cat\\b.jpg"):
            member = zipfile.ZipInfo(name)
            member.create_system = 0
            archive.writestr(member, JPEG)
    assert list(open_source(str(tmp_path / "x.zip")).keys) == ["cat/a.jpg", "cat/b.jpg"]


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_folder_inside_of_an_archive(images: Path, tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"x.{kind}"
    if kind == "zip":
        zip_of(images, path, "photos/train/")
    else:
        with tarfile.open(path, "w") as tar:
            tar.add(images, "photos/train")
    with pytest.raises(DataError, match=rf"one class[\s\S]*x.{kind} --set data.root=photos\n?"):
        open_source(str(path))
    source = open_source(DataConfig(name=str(path), root="./photos/train/"))
    folder = open_source(str(images))
    assert list(source.keys) == list(folder.keys)
    assert source.read(33) == folder.read(33)
    with pytest.raises(DataError, match=r"no images found[\s\S]*60 images outside of the root"):
        open_source(DataConfig(name=str(path), root="photos/tra"))


def test_a_folder_of_inner_tar_files(images: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        with tarfile.open(tmp_path / "inner.tar", "w") as inner:
            for name in ("cat", "dog"):
                inner.add(images / name / "000.jpg", f"{name}/000.jpg")
        tar.add(tmp_path / "inner.tar", "set/train/x.tar")
    source = open_source(DataConfig(name=str(tmp_path / "x.tar"), root="set/train"))
    assert list(source.keys) == ["x/cat/000.jpg", "x/dog/000.jpg"]
    assert list(source.class_names) == ["cat", "dog"]


def test_splits_inside_of_an_archive(tmp_path: Path) -> None:
    path = zipped(tmp_path / "x.zip", "set/train/cat/a.jpg", "set/val/cat/b.jpg")
    with pytest.raises(DataError, match=r"several sets[\s\S]*data.root=set/train"):
        open_source(DataConfig(name=str(path), root="set"))


def edited(path: Path, edit: Callable[[bytearray], None]) -> Path:
    """Change the bytes of a zip file; ``edit`` changes them in place."""
    content = bytearray(path.read_bytes())
    edit(content)
    path.write_bytes(content)
    return path


def directory_of(content: bytes | bytearray) -> int:
    """Return where the first entry of the central directory begins."""
    return content.index(b"PK\x01\x02")


def encrypt(content: bytearray) -> None:
    content[directory_of(content) + 8] |= 1


def inflate_to(size: int) -> Callable[[bytearray], None]:
    def edit(content: bytearray) -> None:
        struct.pack_into("<I", content, directory_of(content) + 24, size)

    return edit


def point_second_at_first(content: bytearray) -> None:
    second = content.index(b"PK\x01\x02", directory_of(content) + 4)
    struct.pack_into("<I", content, second + 42, 0)


def method(number: int) -> Callable[[bytearray], None]:
    def edit(content: bytearray) -> None:
        struct.pack_into("<H", content, directory_of(content) + 10, number)

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (encrypt, r"1 images of the zip file are encrypted[\s\S]*cat/a.jpg"),
        (inflate_to((1 << 30) + 1), r"1 images of the zip file are too large[\s\S]*cat/a.jpg"),
        (method(12), "a method that is not read"),
        (point_second_at_first, r"zip file cannot be read[\s\S]*overlaps"),
        (lambda content: content.__delitem__(slice(100, 300)), "zip file cannot be read"),
        (lambda content: content.__delitem__(slice(-100, None)), "zip file cannot be read"),
        (lambda content: content.__delitem__(slice(0, None)), "zip file cannot be read"),
    ],
)
def test_what_is_refused_before_anything_is_computed(
    tmp_path: Path, edit: Callable[[bytearray], None], message: str
) -> None:
    path = edited(zipped(tmp_path / "x.zip", "cat/a.jpg", "cat/b.jpg"), edit)
    with pytest.raises(DataError, match=message):
        open_source(str(path))


def test_a_zip_without_members(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no images found[\s\S]*no file at all"):
        open_source(str(zipped(tmp_path / "x.zip")))


@pytest.mark.parametrize("name", ["/etc/a.jpg", "../a.jpg", "cat/../../a.jpg"])
def test_a_name_that_leads_out_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="leads out of the root"):
        open_source(str(zipped(tmp_path / "x.zip", name)))


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("at", [0, 60, 300])
def test_a_damaged_member_is_unreadable(tmp_path: Path, compression: int, at: int) -> None:
    path = zipped(tmp_path / "x.zip", "cat/a.jpg", "cat/b.jpg", compression=compression)
    edited(path, lambda content: content.__setitem__(at, content[at] ^ 0x40))
    source = open_source(str(path))
    with pytest.raises(UnreadableImage, match=r"damaged[\s\S]*cat/a.jpg in "):
        source.read(0)
    assert source.read(1) == JPEG


def test_a_member_that_unpacks_to_more_than_it_declares(tmp_path: Path) -> None:
    """Zeros: a thousand times their packed size, of which one byte too many is unpacked."""
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("cat/a.jpg", bytes(50_000_000))
    edited(tmp_path / "x.zip", inflate_to(1000))
    source = open_source(str(tmp_path / "x.zip"))
    tracemalloc.start()
    try:
        with pytest.raises(UnreadableImage, match="expected: 1000 bytes"):
            source.read(0)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_bytes_are_images_or_an_error(tmp_path: Path, data: st.DataObject) -> None:
    path = zipped(tmp_path / "x.zip", "cat/a.jpg", "dog/b.jpg", compression=zipfile.ZIP_DEFLATED)
    content = bytearray(path.read_bytes())
    places = st.one_of(
        st.integers(0, len(content) - 1), st.integers(directory_of(content), len(content) - 1)
    )
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(places)] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        source = open_source(str(path))
        found = [source.read(index) for index in range(len(source.keys))]
    except LogitcacheError:
        return
    assert all(image == JPEG for image in found)
