"""Caches that contain their images: computed, resumed, extended, damaged and repaired."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from logitcache.cache.format.images import (
    PAGE,
    image_fault,
    image_range,
    joined_images,
    shard_range,
    split_images,
    without_checksums,
)
from logitcache.cache.format.manifest import read_manifest
from logitcache.cache.format.names import FEATURES, MAX_CONTENT_BYTES, Status
from logitcache.cache.format.shards import BadShardError, ShardLayout, decode_pages
from logitcache.cache.read.cached_images import CachedImages
from logitcache.cache.read.reader import open_cache
from logitcache.cache.store.open import locate
from logitcache.cache.verify.integrity import verify
from logitcache.cache.write.exclude import withdraw_images
from logitcache.check.repair import RepairConfig, repair_cache
from logitcache.check.verify import verify as verify_all
from logitcache.data.identity import content_digest
from logitcache.data.packing import ImagesConfig, pack
from logitcache.data.readers import open_source
from logitcache.errors import (
    CacheDamaged,
    DataError,
    DataMismatch,
    UnreadableImage,
    UnsupportedFormat,
    UsageError,
)
from logitcache.precompute.build import build_cache
from logitcache.report.describe import describe
from logitcache.share.merging import merge_caches
from logitcache.share.row_selection import RowSelection
from logitcache.share.slicing import slice_cache
from tests.conftest import write_images
from tests.precompute.test_building import commits, config

if TYPE_CHECKING:
    from logitcache.precompute.config import PrecomputeConfig

Teachers = dict[str, dict[str, str]]
PACKED = "packed:24"


def packed(cache: Path, data: Path | None, teachers: Teachers, **fields: Any) -> PrecomputeConfig:
    """Return the configuration of a cache with images, in units of 16 of 8 views a batch."""
    found = config(cache, data or Path("unused"), teachers, images=PACKED, **fields)
    return found.model_copy(update={"data": None}) if data is None else found


@pytest.fixture(scope="module")
def one(teachers: Teachers) -> Teachers:
    """Return a single teacher: these tests are about images."""
    return {"cnn": teachers["cnn"]}


@pytest.fixture(scope="module")
def built(images: Path, one: Teachers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packed") / "cache"
    summary = build_cache(packed(path, images, one))
    assert summary.image_bytes is not None
    return path


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    shutil.copytree(built, tmp_path / "copy")
    return tmp_path / "copy"


def crc32c(content: bytes) -> bytes:
    value: int = google_crc32c.value(content)
    return value.to_bytes(4, "little")


def as_folder(cache: Path, folder: Path) -> Path:
    """Write the images of a cache as files of their keys."""
    source = CachedImages(open_cache(cache))
    for index, key in enumerate(source.keys):
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).write_bytes(source.read(index))
    return folder


def files(cache: Path, *below: str) -> dict[str, str]:
    """Return the sha256 of the files of a cache below some folders."""
    return {
        str(path.relative_to(cache)): hashlib.sha256(path.read_bytes()).hexdigest()
        for top in below
        for path in (cache / top).rglob("*")
        if path.is_file()
    }


@pytest.mark.requirement("F5.13", "F5.14")
def test_zarr_and_numpy_alone_read_the_images(built: Path, images: Path) -> None:
    """With the formula of docs/format.md, and nothing of this package."""
    root = zarr.open_group(str(built), mode="r")
    about: Any = root.attrs["logitcache"]
    unit_rows = about["images"]["unit_rows"]
    end, content = np.asarray(root["images/end"]), root["images/content"]
    keys, status = np.asarray(root["samples/key"]), np.asarray(root["samples/status"])
    originals = open_source(str(images))
    position = {key: index for index, key in enumerate(originals.keys)}
    wanted = ImagesConfig(side=24)
    for row in np.flatnonzero(status == 1).tolist():
        unit, offset = divmod(row, unit_rows)
        begin = end[row - 1] if offset else 0
        image: Any = content[unit, begin : end[row]]  # type: ignore[index]
        original = originals.read(position[keys[row]])
        assert bytes(image) == pack(original, wanted, 2)
        digest = np.asarray(root["images/source_digest"][row])  # type: ignore[index]
        assert digest.tobytes() == content_digest(original)
        assert root["images/source_bytes"][row] == len(original)  # type: ignore[index]
        assert bytes(np.asarray(root["samples/digest"][row])) == content_digest(bytes(image))  # type: ignore[index]
        assert root["samples/bytes"][row] == len(bytes(image))  # type: ignore[index]


@pytest.mark.requirement("F5.1", "F5.13", "F11.4")
def test_arrays_of_images_have_the_shapes_of_the_tree(built: Path) -> None:
    known: Any = zarr.open_group(str(built), path="images", mode="r")
    assert known.attrs["logitcache"] == {"unit_rows": 16}
    found = {
        name: (array.shape, array.dtype.name, int(array.fill_value), array.metadata.dimension_names)
        for name, array in known.arrays()
    }
    assert found == {
        "content": ((4, 2**28), "uint8", 0, ("unit", "content_1")),
        "end": ((64,), "int64", 0, ("row",)),
        "source_bytes": ((64,), "int64", 0, ("row",)),
        "source_digest": ((64, 16), "uint8", 0, ("row", "source_digest_1")),
    }


@pytest.mark.requirement("F5.13", "F11.3")
def test_pages_are_stored_in_order_without_gaps(built: Path) -> None:
    """Byte n of a unit is byte n + 4 (n // 65536) of its shard."""
    array = zarr.open_array(str(built), path="images/content", mode="r")
    for unit in range(4):
        content: Any = array[unit, : 2 * PAGE]
        shard = (built / "images" / "content" / "c" / str(unit) / "0").read_bytes()
        assert shard[:PAGE] == content[:PAGE].tobytes()
        assert not content[PAGE:].any()
        assert len(shard) == PAGE + 4 + 16 * 4096 + 4


@pytest.mark.parametrize("how", ["gap", "order", "index", "page", "longer", "empty"])
@pytest.mark.requirement("F5.13", "F11.37")
def test_pages_in_another_order_are_refused(how: str) -> None:
    pages = [bytes([number]) * 64 for number in (1, 2, 3)]
    stored = [page + crc32c(page) for page in pages]
    absent = struct.pack("<QQ", 2**64 - 1, 2**64 - 1)
    index = [struct.pack("<QQ", 68 * number, 68) for number in range(3)] + [absent]
    layout = ShardLayout(256, 64, "plain")

    def shard() -> bytes:
        table = b"".join(index)
        return b"".join(stored) + table + crc32c(table)

    assert decode_pages(shard(), layout).tobytes() == b"".join(pages)
    if how == "gap":
        index[1:] = [absent, *index[1:3]]
    elif how == "order":
        index[0], index[1] = index[1], index[0]
    elif how == "page":
        stored[1] = stored[1][:-1] + b"?"
    elif how == "longer":
        stored.append(b"more")
    elif how == "empty":
        index[:], stored[:] = [absent] * 4, []
    content = shard()
    content = content[:-1] + b"?" if how == "index" else content
    with pytest.raises(BadShardError):
        decode_pages(content, layout)


@pytest.mark.requirement("V9.3", "F5.14")
def test_teachers_see_what_is_stored(built: Path, one: Teachers, tmp_path: Path) -> None:
    """A cache that is computed from the packed bytes as a folder has the same outputs."""
    folder = as_folder(built, tmp_path / "folder")
    build_cache(config(tmp_path / "plain", folder, one))
    plain, cache = open_cache(tmp_path / "plain"), open_cache(built)
    assert list(plain.views) == list(cache.views)
    assert plain.manifest.data.fingerprint == cache.manifest.data.fingerprint
    assert files(tmp_path / "plain", "samples", "teachers") == files(built, "samples", "teachers")
    assert [d.probes for d in plain.probes()] == [d.probes for d in cache.probes()]
    assert cache.manifest.requires == ("decoding-2", "images")


@pytest.mark.requirement("F11.8", "F11.11", "F5.16")
def test_killed_while_images_are_packed_it_resumes(
    built: Path, images: Path, one: Teachers, tmp_path: Path
) -> None:
    """SIGKILL right after some commit, four times, then the same command: the same bytes."""
    values = packed(tmp_path / "c", images, one).model_dump(mode="json")
    script = (
        "import json, os, signal, sys, torch\n"
        "from logitcache.cache.write import unit_commit as units\n"
        "from logitcache.precompute.config import PrecomputeConfig\n"
        "from logitcache.precompute.build import build_cache\n"
        "torch.set_num_threads(1)\n"
        "write = units.write_commit\n"
        "def run(left):\n"
        "    def counting(*args):\n"
        "        nonlocal left\n"
        "        write(*args)\n"
        "        left -= 1\n"
        "        if not left: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    units.write_commit = counting\n"
        "    build_cache(PrecomputeConfig.parse(json.loads(sys.argv[1]), ''))\n"
        "for left in (1, 1, 2, 3):\n"
        "    child = os.fork()\n"
        "    if not child: run(left)\n"
        "    assert os.waitpid(child, 0)[1] == signal.SIGKILL\n"
    )
    subprocess.run([sys.executable, "-c", script, json.dumps(values)], check=True)
    assert len(commits(tmp_path / "c")) == 7
    assert not describe(tmp_path / "c").complete
    with pytest.raises(UsageError, match="does not contain all of its images yet"):
        build_cache(packed(tmp_path / "c", None, one))
    build_cache(packed(tmp_path / "c", images, one))
    assert commits(tmp_path / "c") == commits(built)
    assert files(tmp_path / "c", "images") == files(built, "images")
    assert verify(tmp_path / "c").ok


def test_a_view_and_a_teacher_are_added_without_the_originals(
    copy: Path, teachers: Teachers, images: Path, tmp_path: Path
) -> None:
    summary = build_cache(packed(copy, None, teachers, views={"count": 3}))
    assert summary.computed == 60 * 3
    assert min(time.images for time in summary.forward.values()) >= 60  # the view that was added
    assert max(time.images for time in summary.forward.values()) >= 60 * 3  # the teacher
    assert 0 < sum(time.seconds for time in summary.forward.values()) < summary.seconds
    build_cache(packed(tmp_path / "whole", images, teachers, views={"count": 3}))
    assert files(copy, "teachers") == files(tmp_path / "whole", "teachers")


def test_images_are_added_with_their_originals(
    copy: Path, one: Teachers, images: Path, tmp_path: Path
) -> None:
    more = Path(shutil.copytree(images, tmp_path / "more"))
    for path in sorted((more / "cat").iterdir())[:3]:
        path.with_stem(f"{path.stem}-again").write_bytes(path.read_bytes())
    before = files(copy, "commits", "images/content/c")
    summary = build_cache(packed(copy, more, one))
    assert summary.images == 63
    assert before.items() <= files(copy, "commits", "images/content/c").items()
    assert verify(copy).ok
    assert len(CachedImages(open_cache(copy)).keys) == 63


def test_other_originals_are_refused(
    copy: Path, one: Teachers, images: Path, tmp_path: Path
) -> None:
    other = write_images(tmp_path / "other", 20, ("bird", "cat", "dog"))
    (other / "cat" / "003.jpg").write_bytes((images / "dog" / "004.jpg").read_bytes() + b"\0")
    with pytest.raises(DataMismatch, match=r"1 of another size: cat/003\.jpg"):
        build_cache(packed(copy, other, one))


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("packed:32", r"images packed:32, quality 92"),
        ({"kind": "packed", "side": 24, "quality": 80}, r"quality 80"),
    ],
)
def test_other_settings_of_images_are_refused(
    copy: Path, one: Teachers, images: Path, wanted: Any, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        build_cache(config(copy, images, one, images=wanted))


def test_a_cache_without_images_does_not_get_any(
    one: Teachers, images: Path, tmp_path: Path
) -> None:
    build_cache(config(tmp_path, images, one))
    with pytest.raises(UsageError, match="no images in the cache"):
        build_cache(packed(tmp_path, images, one))
    with pytest.raises(UsageError, match="option 'data' is missing"):
        build_cache(config(tmp_path, images, one).model_copy(update={"data": None}))
    with pytest.raises(UsageError, match="does not contain its images"):
        CachedImages(open_cache(tmp_path))


@pytest.mark.parametrize("text", ["packed:", "packed:big", "packed:5", "unpacked", "packed:9999"])
def test_unusable_settings_of_images_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        ImagesConfig.parse(text, "images")


def test_unreadable_originals_have_no_bytes(one: Teachers, images: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(images, tmp_path / "images"))
    (folder / "cat" / "002.jpg").write_bytes(b"no image")
    with pytest.raises(UnreadableImage, match=r"cat/002\.jpg[\s\S]*--on-bad-image skip"):
        build_cache(packed(tmp_path / "c", folder, one))
    summary = build_cache(packed(tmp_path / "c", folder, one, on_bad_image="skip"))
    assert summary.unreadable == 1
    cache = open_cache(tmp_path / "c")
    (row,) = np.flatnonzero(cache.samples.status == Status.UNREADABLE)
    assert cache.samples.keys[row] == "cat/002.jpg"
    assert cache.samples.sizes[row] == 0
    source = CachedImages(cache)
    with pytest.raises(UnreadableImage, match=r"cat/002\.jpg"):
        source.read(source.keys.index("cat/002.jpg"))
    assert verify_all(tmp_path / "c").ok


def test_excluded_images_are_no_images_of_the_cache(copy: Path) -> None:
    withdraw_images(copy, ["cat/003.jpg"], "a test")
    source = CachedImages(open_cache(copy))
    assert "cat/003.jpg" not in source.keys
    assert len(source.keys) == 59
    report = verify_all(copy)
    assert report.ok


@pytest.mark.parametrize(
    ("rows", "encoded"),
    [(RowSelection(), False), (RowSelection(classes=("cat", "dog")), True)],
    ids=["all", "two classes"],
)
def test_a_slice_contains_the_images_of_its_rows(
    built: Path, one: Teachers, tmp_path: Path, rows: RowSelection, encoded: bool
) -> None:
    """As a cache that is computed of these images alone."""
    folder = as_folder(built, tmp_path / "folder")
    summary = slice_cache(built, tmp_path / "slice", rows=rows)
    assert (summary.encoded > 0) == encoded
    assert verify(tmp_path / "slice").ok
    cache, whole = open_cache(tmp_path / "slice"), open_cache(built)
    assert cache.manifest.images == whole.manifest.images
    source = CachedImages(cache)
    assert len(source.keys) == (40 if encoded else 60)
    for index, key in enumerate(source.keys):
        assert source.read(index) == (folder / key).read_bytes()
    assert verify_all(tmp_path / "slice", teachers=one, samples=10).ok
    if not encoded:
        assert files(tmp_path / "slice", "images/content/c") == files(built, "images/content/c")


def test_parts_of_a_cache_are_merged_with_their_images(built: Path, tmp_path: Path) -> None:
    """A cache that is cut by class, and joined again, is the same."""
    for name in ("bird", "cat", "dog"):
        slice_cache(built, tmp_path / name, rows=RowSelection(classes=(name,)))
    parts = [tmp_path / name for name in ("bird", "cat", "dog")]
    merge_caches(parts, tmp_path / "whole")
    assert verify(tmp_path / "whole").ok
    assert files(tmp_path / "whole", "images", "samples") == files(built, "images", "samples")


def test_caches_with_other_settings_of_images_are_not_merged(
    built: Path, one: Teachers, tmp_path: Path
) -> None:
    """Also where the images are the same bytes: one of the caches would lack them."""
    build_cache(config(tmp_path / "plain", as_folder(built, tmp_path / "folder"), one))
    with pytest.raises(UsageError, match=r"same size and quality[\s\S]*none"):
        merge_caches([built, tmp_path / "plain"], tmp_path / "merged")


def test_verifying_renders_the_view_fingerprints_from_the_cache_alone(
    built: Path, one: Teachers
) -> None:
    report = verify_all(built, teachers=one, samples=20)
    assert report.images is not None
    assert report.images.digested == 60
    assert report.fingerprints is not None
    assert report.fingerprints.checked > 0
    assert report.audits[0].mismatched == 0
    assert report.ok


@pytest.mark.parametrize("how", ["missing", "changed", "truncated", "swapped"])
def test_a_damaged_unit_of_images_is_found_and_packed_again(
    copy: Path, images: Path, how: str, tmp_path: Path
) -> None:
    before = files(copy, "images", "commits")
    shard = copy / "images" / "content" / "c" / "1" / "0"
    content = bytearray(shard.read_bytes())
    if how == "missing":
        shard.unlink()
    elif how == "truncated":
        shard.write_bytes(content[:-9])
    elif how == "swapped":
        shard.write_bytes((copy / "images" / "content" / "c" / "2" / "0").read_bytes())
    else:
        content[100] ^= 1
        shard.write_bytes(content)
    report = verify(copy)
    assert [(fault.group, fault.unit) for fault in report.faults] == [("images", 1)]
    if how != "truncated":  # the index at the end is not needed to read an image
        with pytest.raises(CacheDamaged):
            as_folder(copy, tmp_path / "folder")
    with pytest.raises(UsageError, match="1 units of the samples and images"):
        repair_cache(RepairConfig(cache=str(copy)))
    repaired = repair_cache(RepairConfig(cache=str(copy)), data=str(images))
    assert (repaired.recomputed, repaired.differing, repaired.remaining) == (1, 0, ())
    assert files(copy, "images", "commits") == before


def test_repairing_with_other_originals_is_refused(
    copy: Path, images: Path, tmp_path: Path
) -> None:
    (copy / "images" / "content" / "c" / "1" / "0").unlink()
    (copy / "images" / "source_bytes" / "c" / "1").unlink()
    other = Path(shutil.copytree(images, tmp_path / "other"))
    for path in other.rglob("*.jpg"):
        path.write_bytes((images / "cat" / "001.jpg").read_bytes())
    with pytest.raises(DataMismatch):
        repair_cache(RepairConfig(cache=str(copy)), data=str(other))
    repair_cache(RepairConfig(cache=str(copy)), data=str(images))
    assert verify(copy).ok


def test_other_units_are_repaired_from_the_images_in_the_cache(copy: Path, one: Teachers) -> None:
    before = files(copy, "teachers", "samples")
    (view, *_) = open_cache(copy).views
    slot = open_cache(copy).teacher("cnn").slot(view)
    (copy / "teachers" / "cnn" / "logp" / "c" / str(slot) / "2" / "0").unlink()
    wanted = RepairConfig.parse({"cache": str(copy), "teachers": one}, "")
    assert repair_cache(wanted).remaining == ()
    assert files(copy, "teachers", "samples") == before


def test_samples_are_repaired_with_the_originals(copy: Path, images: Path) -> None:
    before = files(copy, "samples", "commits")
    for name in ("digest/c/1/0", "key/c/2", "bytes/c/0"):
        (copy / "samples" / name).unlink()
    with pytest.raises(UsageError, match="3 units of the samples and images"):
        repair_cache(RepairConfig(cache=str(copy)))
    assert repair_cache(RepairConfig(cache=str(copy)), data=str(images)).remaining == ()
    assert files(copy, "samples", "commits") == before


@pytest.mark.requirement("F2.5.3")
def test_an_older_reader_refuses_the_cache(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(FEATURES, "images")
    with pytest.raises(UnsupportedFormat, match="images"):
        open_cache(copy)


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "views"},
        {"side": 0},
        {"side": 5000},
        {"quality": 101},
        {"unit_rows": 12},
        {"unit_rows": 0},
    ],
)
@pytest.mark.requirement("F12.13")
def test_a_root_with_impossible_images_is_refused(copy: Path, fields: dict[str, Any]) -> None:
    document = json.loads((copy / "zarr.json").read_text())
    document["attributes"]["logitcache"]["images"] |= fields
    (copy / "zarr.json").write_text(json.dumps(document))
    with pytest.raises(Exception, match="manifest is damaged"):
        read_manifest(locate(copy))


@pytest.mark.requirement("F5.13")
@given(lengths=st.lists(st.integers(0, 3 * PAGE), min_size=1, max_size=8))
@settings(max_examples=30)
def test_an_image_is_found_in_the_shard_of_its_unit(lengths: list[int]) -> None:
    """The shard is written out here: pages of 64 KiB, each followed by a checksum."""
    images = [bytes([number % 251 + 1]) * length for number, length in enumerate(lengths)]
    arrays: Any = joined_images(images, "here")
    content, end = arrays["content"].tobytes(), arrays["end"]
    assert len(content) % PAGE == 0
    assert content.rstrip(b"\0") == b"".join(images)
    pages = [content[start : start + PAGE] for start in range(0, len(content), PAGE)]
    shard = b"".join(page + b"crc!" for page in pages)
    assert split_images(arrays["content"], end).tolist() == images
    for offset, image in enumerate(images):
        begin, stop = image_range(end, offset)
        if begin == stop:
            assert image == b""
            continue
        first, last = shard_range(begin, stop)
        assert without_checksums(shard[first:last], begin, stop) == image


@pytest.mark.requirement("F5.15")
def test_ends_that_cannot_be_are_refused() -> None:
    assert image_fault({"end": np.array([0, 5, 5, 9])}) is None
    for ends in ([-1, 5], [5, 4, 9], [0, MAX_CONTENT_BYTES + 1], [-(2**63), 2**63 - 1]):
        assert image_fault({"end": np.array(ends, dtype=np.int64)}) is not None
    assert image_fault({"source_bytes": np.array([3, -1])}) is not None


def test_images_that_do_not_fit_into_a_unit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from logitcache.cache.format import images

    monkeypatch.setattr(images, "MAX_CONTENT_BYTES", 1000)
    with pytest.raises(DataError, match=r"too large[\s\S]*packed:SIDE"):
        joined_images([b"x" * 600, b"y" * 401], "unit 3")
