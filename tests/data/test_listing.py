"""What of a folder is an image, which class it has, and what is left out, counted by reason."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from logitcache.data.listing import LISTING, list_folder, list_tar
from logitcache.data.readers import DataConfig, open_source
from logitcache.data.source import left_out_of, notes_of
from logitcache.errors import DataError, LogitcacheError, UsageError
from tests.conftest import jpeg, shape_image, write_images

if TYPE_CHECKING:
    from collections.abc import Callable

JPEG = jpeg(shape_image(0))
FORMATS = {"JPEG", "MPO", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF"}


def put(root: Path, *names: str, content: bytes = JPEG) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def tar_of(root: Path, path: Path) -> Path:
    with tarfile.open(path, "w") as tar:
        tar.add(root, arcname=".")
    return path


@pytest.mark.requirement("F4.2")
def test_the_endings_are_those_that_the_decoder_reads(tmp_path: Path) -> None:
    Image.init()
    known = {e for e, f in Image.registered_extensions().items() if f in FORMATS} - {".pfm"}
    for number, ending in enumerate(sorted(known | {e.upper() for e in known})):
        put(tmp_path, f"cat/{number}{ending}")
    listing = list_folder(tmp_path)
    assert {Path(file.key).suffix.lower() for file in listing.files} == known
    assert not listing.left_out
    assert len(list_folder(tmp_path, version=1).files) == 2 * len({".jpg", ".jpeg", ".png"})


def test_a_class_of_another_format_is_a_class(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    shape_image(1).save(buffer, "WEBP")
    put(tmp_path, "cat/a.webp", content=buffer.getvalue())
    put(tmp_path, "deer/a.jpg")
    source = open_source(str(tmp_path))
    assert list(source.class_names) == ["cat", "deer"]
    assert source.labels.tolist() == [0, 1]


@pytest.mark.requirement("F4.4")
def test_what_is_no_image_is_counted_by_reason(tmp_path: Path) -> None:
    put(tmp_path, "cat/a.jpg", "dog/a.jpg")
    put(tmp_path, "cat/a.heic", "cat/b.HEIC", "cat/notes.txt", "dog/README", "metadata.jsonl")
    put(tmp_path, "dog/a.cls")
    put(tmp_path, "cat/._a.jpg", ".ipynb_checkpoints/a.jpg", "cat/.hidden/x.jpg")
    put(tmp_path, "__MACOSX/cat/._a.jpg")
    expected = {
        ".heic files": 2,
        ".txt files": 1,
        ".cls files (labels of WebDataset shards, whose name begins with wds/)": 1,
        "files without an ending": 1,
        "metadata.jsonl (to read labels from it, give it as the data)": 1,
        "hidden names": 3,
        "__MACOSX folders": 1,
    }
    source = open_source(str(tmp_path))
    assert left_out_of(source) == expected
    assert list(source.keys) == ["cat/a.jpg", "dog/a.jpg"]
    assert left_out_of(open_source(DataConfig(name=str(tmp_path), limit=1))) == expected
    in_tar = left_out_of(open_source(str(tar_of(tmp_path, tmp_path.with_suffix(".tar")))))
    assert {r: n for r, n in in_tar.items() if "files" in r} == {
        r: n for r, n in expected.items() if "files" in r
    }


@pytest.mark.requirement("F4.3")
def test_the_class_is_the_first_folder_below_the_root(tmp_path: Path) -> None:
    put(tmp_path, "cat/indoor/a.jpg", "cat/outdoor/b.jpg", "dog/indoor/c.jpg", "dog/d.jpg")
    source = open_source(str(tmp_path))
    assert list(source.class_names) == ["cat", "dog"]
    assert source.labels.tolist() == [0, 0, 1, 1]
    (note,) = notes_of(source)
    assert "cat/indoor, cat/outdoor are all 'cat'" in note
    old = list_folder(tmp_path, version=1)
    assert old.class_names == ["dog", "indoor", "outdoor"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["train/cat/a.jpg", "val/cat/b.jpg"],
            r"(/train --val .+/val|data.root=train)$",
        ),
        (["train/a.jpg", "test/b.jpg"], r"several sets[\s\S]*test, train"),
        (["Training/cat/a.jpg", "validation/a.jpg", "test/b.jpg"], "several sets of images"),
        (
            ["photos/cat/a.jpg", "photos/dog/b.jpg"],
            r"one class[\s\S]*(/|root=)photos$",
        ),
        (
            ["animal/cat/a.jpg", "animal/dog/b.jpg", "car/bus/c.jpg", "car/van/d.jpg"],
            r"not clear[\s\S]*animal contains animal/cat, animal/dog[\s\S]*=first, or last",
        ),
        (["cat/a.jpg", "b.jpg"], r"and some are not[\s\S]*1 images[\s\S]*b.jpg[\s\S]*cat"),
        (["cafe\u0301/a.jpg", "caf\u00e9/b.jpg"], "two Unicode forms"),
        (["a.txt", "b.heic"], r"no images found[\s\S]*1 .txt files, 1 .heic files"),
        ([".hidden/a.jpg"], r"no images found[\s\S]*1 hidden names"),
    ],
)
@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_folders_that_cannot_be_classes_are_named(
    tmp_path: Path, names: list[str], message: str, kind: str
) -> None:
    root = put(tmp_path / "data", *names)
    name = root if kind == "folder" else tar_of(root, tmp_path / "data.tar")
    with pytest.raises(DataError, match=message):
        open_source(str(name))


@pytest.mark.requirement("F4.3")
def test_which_folder_names_the_class_can_be_chosen(tmp_path: Path) -> None:
    put(tmp_path, "animal/cat/a.jpg", "animal/dog/b.jpg", "car/bus/c.jpg", "car/van/d.jpg")

    def classes(**fields: Any) -> list[str]:
        return list(open_source(DataConfig(name=str(tmp_path), **fields)).class_names)

    assert classes(class_folder="first") == ["animal", "car"]
    assert classes(class_folder="last") == ["bus", "cat", "dog", "van"]
    put(tmp_path, "plane/bus/e.jpg")
    with pytest.raises(DataError, match=r"several folders[\s\S]*bus: car/bus, plane/bus"):
        classes(class_folder="last")


def test_a_class_called_train_is_a_class(tmp_path: Path) -> None:
    put(tmp_path, "bus/a.jpg", "train/a.jpg")
    assert list(open_source(str(tmp_path)).class_names) == ["bus", "train"]


def linked(root: Path, link: str, target: Path) -> None:
    (root / link).parent.mkdir(parents=True, exist_ok=True)
    (root / link).symlink_to(target)


@pytest.mark.requirement("F4.5")
def test_every_real_file_is_listed_once(tmp_path: Path) -> None:
    root = put(tmp_path / "data", "cat/a.jpg", "dog/b.jpg")
    put(tmp_path / "elsewhere", "x.jpg", "deep/y.jpg")
    linked(root, "cat/again.jpg", root / "cat" / "a.jpg")
    linked(root, "dog/also-a-cat.jpg", root / "cat" / "a.jpg")
    linked(root, "cat/x.jpg", tmp_path / "elsewhere" / "x.jpg")
    linked(root, "owl", tmp_path / "elsewhere")
    linked(root, "cat/loop", root)
    linked(root, "dog/self", root / "dog")
    linked(root, "dog/gone.jpg", tmp_path / "nowhere.jpg")
    source = open_source(str(root))
    assert list(source.keys) == ["cat/a.jpg", "cat/x.jpg", "dog/b.jpg", "owl/deep/y.jpg"]
    assert left_out_of(source) == {
        "links to files that are listed already": 3,
        "links to folders that are listed already": 2,
        "broken links": 1,
    }
    os.link(root / "cat" / "a.jpg", root / "dog" / "hard.jpg")
    assert "dog/hard.jpg" in open_source(str(root)).keys, "a name of its own, no link"


def test_the_root_may_be_a_link(tmp_path: Path) -> None:
    put(tmp_path / "data", "cat/a.jpg")
    (tmp_path / "link").symlink_to(tmp_path / "data")
    assert list(open_source(str(tmp_path / "link")).keys) == ["cat/a.jpg"]


def test_a_pipe_is_no_image(tmp_path: Path) -> None:
    put(tmp_path, "cat/a.jpg")
    os.mkfifo(tmp_path / "cat" / "b.jpg")
    assert left_out_of(open_source(str(tmp_path))) == {"neither files nor folders": 1}


def member(name: str, content: bytes = JPEG) -> tuple[tarfile.TarInfo, io.BytesIO]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    return info, io.BytesIO(content)


@pytest.mark.requirement("F3.1", "F4.6")
def test_a_tar_is_listed_as_its_extracted_folder(tmp_path: Path) -> None:
    path = tmp_path / "data.tar"
    newer = jpeg(shape_image(9))
    with tarfile.open(path, "w") as tar:
        tar.addfile(*member("./cat/a.jpg"))
        tar.addfile(*member("cat//b.jpg"))
        hard = tarfile.TarInfo("dog/hard.jpg")
        hard.type, hard.linkname = tarfile.LNKTYPE, "./cat/a.jpg"
        tar.addfile(hard)
        soft = tarfile.TarInfo("dog/soft.jpg")
        soft.type, soft.linkname = tarfile.SYMTYPE, "../cat/a.jpg"
        tar.addfile(soft)
        tar.addfile(*member("dog/c.jpg"))
        tar.addfile(*member("dog/c.jpg", newer))
    source = open_source(str(path))
    assert list(source.keys) == ["cat/a.jpg", "cat/b.jpg", "dog/c.jpg", "dog/hard.jpg"]
    assert source.read(2) == newer
    assert source.read(3) == JPEG
    assert left_out_of(source) == {
        "links and other members without content": 1,
        "replaced by a later member of the same name": 1,
    }


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """Return the header of a member, with any size."""
    info = tarfile.TarInfo(name)
    info.type = kind
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = (b"\x80" if size >= 0 else b"\xff") + (size % (1 << 88)).to_bytes(11, "big")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, b"x", b"g", b"L", b"K"])
@pytest.mark.parametrize("size", [-1, -512, -1024, -(1 << 62), (1 << 63) - 513, 1 << 87])
def test_headers_with_impossible_sizes(tmp_path: Path, kind: bytes, size: int) -> None:
    """A negative size would lead back to an earlier header, for ever."""
    for before in (b"", header("a.jpg", 10) + b"x" * 512):
        content = before + header("b.jpg", size, kind) + b"\0" * 1024
        (tmp_path / "x.tar").write_bytes(content)
        for name in (str(tmp_path / "x.tar"), f"wds/{tmp_path}"):
            with pytest.raises(DataError, match=r"cannot be read|no images found"):
                open_source(name)


def nested_tar(path: Path, inner: dict[str, list[str]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for number, (name, files) in enumerate(inner.items()):
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w") as one:
                for index, file in enumerate(files):
                    one.addfile(*member(file, jpeg(shape_image(10 * number + index))))
            tar.addfile(*member(name, buffer.getvalue()))
    return path


@pytest.mark.requirement("F4.7")
def test_equal_names_in_two_inner_tars_are_two_images(tmp_path: Path) -> None:
    path = nested_tar(tmp_path / "x.tar", {"cat.tar": ["0.jpg", "1.jpg"], "dog.tar": ["0.jpg"]})
    source = open_source(str(path))
    assert list(source.keys) == ["cat/0.jpg", "cat/1.jpg", "dog/0.jpg"]
    assert list(source.class_names) == ["cat", "dog"]
    assert [source.read(i) for i in range(3)] == [jpeg(shape_image(n)) for n in (0, 1, 10)]


@pytest.mark.requirement("F4.3", "F4.7")
def test_inner_tars_with_class_folders_are_shards(tmp_path: Path) -> None:
    files = ["cat/0.jpg", "dog/0.jpg"]
    source = open_source(str(nested_tar(tmp_path / "x.tar", {"s-0.tar": files, "s-1.tar": files})))
    assert list(source.class_names) == ["cat", "dog"]
    assert list(source.keys) == ["s-0/cat/0.jpg", "s-0/dog/0.jpg", "s-1/cat/0.jpg", "s-1/dog/0.jpg"]
    assert source.labels.tolist() == [0, 1, 0, 1]


@pytest.mark.requirement("F4.7")
def test_old_rules_list_a_tar_as_timm_does(tmp_path: Path) -> None:
    from timm.data.readers.reader_image_in_tar import extract_tarinfos

    path = nested_tar(tmp_path / "x.tar", {"cat.tar": ["0.jpg", "1.jpg"], "dog.tar": ["2.jpg"]})
    listing = list_tar(path, version=1)
    samples, targets, classes, _ = extract_tarinfos(str(path), cache_tarinfo=False)
    assert {
        file.key: listing.class_names[label]
        for file, label in zip(listing.files, listing.labels, strict=True)
    } == {
        info.name: list(classes)[target]
        for (info, _, _), target in zip(samples, targets, strict=True)
    }


@pytest.mark.requirement("F4.2", "F4.3", "F4.4")
def test_old_rules_list_a_folder_as_timm_does(tmp_path: Path) -> None:
    from timm.data.readers.reader_image_folder import find_images_and_targets

    put(tmp_path, "a/x/1.jpg", "b/x/2.PNG", "b/.y/3.jpeg", "b/z.webp", "c/4.jpg", "10/1.jpg")
    put(tmp_path, "2/1.jpg", ".h/7.jpg", "__MACOSX/._8.jpg")
    listing = list_folder(tmp_path, version=1)
    files, classes = find_images_and_targets(str(tmp_path))
    assert listing.class_names == sorted(classes, key=classes.__getitem__)
    assert {file.key: label for file, label in zip(listing.files, listing.labels, strict=True)} == {
        Path(path).relative_to(tmp_path).as_posix(): target for path, target in files
    }


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("train.json", DataError, "this kind of table is not read"),
        ("x.7z", DataError, "only tar and zip files are read"),
        ("photo.jpg", DataError, "no reader has this ending"),
        ("x.npz", DataError, "arrays are not read"),
        ("x.tgz", DataError, "no random access"),
    ],
)
def test_a_file_that_is_no_set_says_why(
    tmp_path: Path, name: str, error: type[Exception], message: str
) -> None:
    put(tmp_path, name)
    with pytest.raises(error, match=message):
        open_source(str(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("s3://bucket/photos", "cannot be read from a URL"),
        ("https://x.org/photos.tar", "of https:// URLs, caches and WebDataset shards"),
        ("https://user:secret@x.org/photos.zip", r"where:    https://\*\*\*@x.org"),
        ("wds/s3://bucket/folder", "a folder behind a URL cannot be listed"),
        ("tfds/cifar10", "data sets of tfds/ are not supported"),
    ],
)
def test_places_that_are_not_read_are_named(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_source(name)


@pytest.mark.parametrize(
    "name", ["x" * 5000, "a\0b/c", "~nobody-is-called-so/x", "{" * 300 + ".tar", "wds/" + "x" * 300]
)
def test_names_that_no_file_can_have(name: str) -> None:
    with pytest.raises(LogitcacheError):
        open_source(name)


def test_a_windows_path_is_no_url(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from logitcache.cache.store.local import LocalLocation
    from logitcache.cache.store.open import locate

    for name in (r"C:\caches\x", "C:/caches/x", "c:\\x"):
        assert isinstance(locate(name), LocalLocation)
    with pytest.raises(DataError, match="does not exist"):
        open_source(r"C:\photos\train")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_without_permission_is_named(tmp_path: Path) -> None:
    put(tmp_path, "cat/a.jpg", "dog/a.jpg")
    (tmp_path / "dog").chmod(0)
    with pytest.raises(DataError, match=r"cannot be read[\s\S]*dog"):
        open_source(str(tmp_path))


def test_a_listing_is_the_same_in_any_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path, 5)
    before = list_folder(tmp_path)
    scandir: Callable[[Any], Any] = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: iter(list(scandir(path))[::-1]))
    assert list_folder(tmp_path, LISTING) == before
