"""Caches that contain their rendered views: computed, resumed, extended, damaged and repaired."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import simplejpeg
import zarr

from logitcache.cache.format.manifest import read_manifest
from logitcache.cache.format.names import FEATURES, Status
from logitcache.cache.format.squares import stored_views
from logitcache.cache.read.reader import open_cache
from logitcache.cache.store.open import locate
from logitcache.cache.verify.integrity import verify
from logitcache.cache.write.drop import drop_from_cache
from logitcache.check.repair import RepairConfig, repair_cache
from logitcache.check.verify import verify as verify_all
from logitcache.data.identity import content_digest
from logitcache.data.packing import ImagesConfig, encode_jpeg
from logitcache.data.readers import open_source
from logitcache.errors import (
    CacheError,
    DataMismatch,
    UnreadableImage,
    UnsupportedFormat,
    UsageError,
)
from logitcache.precompute.build import build_cache
from logitcache.report.describe import describe
from logitcache.share.garbage import collect_garbage
from logitcache.share.merging import merge_caches
from logitcache.share.row_selection import RowSelection
from logitcache.share.slicing import slice_cache
from logitcache.views.render import BatchRequest, ViewRenderer
from logitcache.views.spec import parse_view
from tests.precompute.test_building import commits, config
from tests.precompute.test_packing import files

if TYPE_CHECKING:
    from logitcache.precompute.config import PrecomputeConfig

Teachers = dict[str, dict[str, str]]
VIEWS: dict[str, Any] = {"eval": True, "count": 2, "derive": ["rot90(1)"], "re_prob": 0.5}


def stored(cache: Path, data: Path | None, teachers: Teachers, **fields: Any) -> PrecomputeConfig:
    """Return the configuration of a cache with its views: squares of 8 pixels, units of 16."""
    found = config(
        cache, data or Path("unused"), teachers, **{"images": "views", "views": VIEWS, **fields}
    )
    return found.model_copy(update={"data": None}) if data is None else found


@pytest.fixture(scope="module")
def one(teachers: Teachers) -> Teachers:
    """Return a single teacher: these tests are about images."""
    return {"cnn": teachers["cnn"]}


@pytest.fixture(scope="module")
def built(images: Path, one: Teachers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stored") / "cache"
    summary = build_cache(stored(path, images, one))
    assert summary.image_bytes is not None
    return path


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    shutil.copytree(built, tmp_path / "copy")
    return tmp_path / "copy"


def square(root: Any, view_id: str, row: int, unit_rows: int = 16) -> bytes:
    """Return a stored square by zarr and numpy, as docs/format.md describes it."""
    end, (unit, offset) = root[f"squares/{view_id}/end"], divmod(row, unit_rows)
    begin = int(end[row - 1]) if offset else 0
    return bytes(root[f"squares/{view_id}/content"][unit, begin : int(end[row])])


@pytest.mark.requirement("F5.17", "F5.18", "V9.5", "V9.6")
def test_zarr_and_numpy_alone_read_the_squares(built: Path, images: Path) -> None:
    """Each is the JPEG of the square that a renderer makes of the original image."""
    root: Any = zarr.open_group(str(built), mode="r")
    about: Any = root.attrs["logitcache"]
    assert about["squares"] == {"side": 8, "quality": 92, "unit_rows": 16}
    keys, status = np.asarray(root["samples/key"]), np.asarray(root["samples/status"])
    hashes = np.asarray(root["samples/hash"])
    source = open_source(str(images))
    rows = np.flatnonzero(status == Status.OK)
    indices = np.array([source.keys.index(key) for key in keys[rows]])
    own = [view_id for view_id, recipe in about["views"].items() if recipe["base"] is None]
    assert sorted(root["squares"].group_keys()) == sorted(own)
    with ViewRenderer(source.read, [8], threads=2) as renderer:
        for view_id in own:
            view = parse_view(about["views"][view_id], "")
            (batch,) = renderer.batches([BatchRequest(view, indices, hashes[rows])])
            for row, pixels in zip(rows.tolist(), batch.pixels[8], strict=True):
                jpeg = square(root, view_id, row)
                assert jpeg == encode_jpeg(np.ascontiguousarray(pixels.transpose(1, 2, 0)), 92)
                digest = np.asarray(root[f"squares/{view_id}/digest"][row])
                assert digest.tobytes() == content_digest(jpeg)
    for row, index in zip(rows.tolist(), indices.tolist(), strict=True):
        original = source.read(index)
        assert np.asarray(root["samples/digest"][row]).tobytes() == content_digest(original)


@pytest.mark.requirement("V9.7", "F5.20")
def test_teachers_see_what_is_stored(built: Path, one: Teachers, tmp_path: Path) -> None:
    """A cache of the squares of a view as a folder of images has the same outputs."""
    root: Any = zarr.open_group(str(built), mode="r")
    cache = open_cache(built)
    eval_id, first, turned = list(cache.views)[:3]
    assert cache.views[turned]["base"] == first
    folder = tmp_path / "folder"
    for row in cache.samples.readable.tolist():
        path = folder / cache.samples.keys[row]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(square(root, first, row))
    whole = {"eval": True, "crop_pct": 1.0, "count": 0}
    build_cache(config(tmp_path / "plain", folder, one, views=whole))
    plain = open_cache(tmp_path / "plain")
    (only,) = plain.views
    ours, theirs = cache.read("cnn", first, 0, 60), plain.read("cnn", only, 0, 60)
    assert all(np.array_equal(ours[name], theirs[name], equal_nan=True) for name in ours)
    assert cache.manifest.requires == ("decoding-2", "stored-views")
    other = cache.read("cnn", eval_id, 0, 60)
    assert not all(np.array_equal(ours[name], other[name], equal_nan=True) for name in ours)


@pytest.mark.requirement("F5.19", "F11.8", "F11.11")
def test_killed_while_views_are_stored_it_resumes(
    built: Path, images: Path, one: Teachers, tmp_path: Path
) -> None:
    """SIGKILL right after some commit, five times, then the same command: the same bytes."""
    values = stored(tmp_path / "c", images, one).model_dump(mode="json")
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
        "for left in (1, 1, 2, 3, 4):\n"
        "    child = os.fork()\n"
        "    if not child: run(left)\n"
        "    assert os.waitpid(child, 0)[1] == signal.SIGKILL\n"
    )
    subprocess.run([sys.executable, "-c", script, json.dumps(values)], check=True)
    found = commits(tmp_path / "c")
    assert len(found) == 11
    assert any(key.startswith("commits/squares/") for key in found)
    assert not describe(tmp_path / "c").complete
    build_cache(stored(tmp_path / "c", images, one))
    assert commits(tmp_path / "c") == commits(built)
    assert files(tmp_path / "c", "squares") == files(built, "squares")
    assert verify(tmp_path / "c").ok


def test_views_are_added_with_the_originals_and_teachers_too(
    copy: Path, teachers: Teachers, images: Path, tmp_path: Path
) -> None:
    more = {**VIEWS, "count": 3}
    with pytest.raises(UsageError, match=r"not available here[\s\S]*--data"):
        build_cache(stored(copy, None, teachers, views=more))
    before = files(copy, "squares")
    build_cache(stored(copy, images, teachers, views=more))
    after = files(copy, "squares")
    documents = {key for key in before if key.endswith("zarr.json")}
    assert {k: v for k, v in before.items() if k not in documents}.items() <= after.items()
    build_cache(stored(tmp_path / "whole", images, teachers, views=more))
    assert files(copy, "teachers") == files(tmp_path / "whole", "teachers")
    assert files(copy, "squares") == files(tmp_path / "whole", "squares")


def test_images_are_added_as_a_segment(
    copy: Path, one: Teachers, images: Path, tmp_path: Path
) -> None:
    more = Path(shutil.copytree(images, tmp_path / "more"))
    path = more / "cat" / "001.jpg"
    path.with_stem("another").write_bytes(path.read_bytes())
    assert build_cache(stored(copy, more, one)).images == 61
    assert verify(copy).ok


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("views:16", r"images views:16, quality 92"),
        ("packed:8", r"images packed:8"),
        ({"kind": "views", "quality": 80}, r"quality 80"),
    ],
)
def test_other_settings_of_stored_views_are_refused(
    copy: Path, one: Teachers, images: Path, wanted: Any, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        build_cache(config(copy, images, one, images=wanted, views=VIEWS))


@pytest.mark.requirement("V9.8")
def test_teachers_of_another_size_are_refused_before_anything_is_created(
    one: Teachers, images: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"teachers of 16 pixels[\s\S]*a teacher of 8 pixels"):
        build_cache(stored(tmp_path / "c", images, one, images="views:16"))
    assert not (tmp_path / "c" / "zarr.json").exists()


def test_unreadable_originals_have_no_squares(one: Teachers, images: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(images, tmp_path / "images"))
    (folder / "cat" / "002.jpg").write_bytes(b"no image")
    with pytest.raises(UnreadableImage, match=r"cat/002\.jpg[\s\S]*--on-bad-image skip"):
        build_cache(stored(tmp_path / "c", folder, one))
    summary = build_cache(stored(tmp_path / "c", folder, one, on_bad_image="skip"))
    assert summary.unreadable == 1
    cache = open_cache(tmp_path / "c")
    (row,) = np.flatnonzero(cache.samples.status == Status.UNREADABLE)
    assert cache.squares is not None
    assert [cache.squares.read(view, int(row)) for view in stored_views(cache.manifest)] == [
        b""
    ] * 3
    assert verify_all(tmp_path / "c").ok


def test_outputs_are_recomputed_from_the_cache_alone(built: Path, one: Teachers) -> None:
    report = verify_all(built, teachers=one, samples=20)
    assert report.ok
    assert report.audits[0].samples >= 20
    assert report.fingerprints is not None
    assert report.fingerprints.checked >= 60


@pytest.mark.requirement("F5.20", "F11.12")
def test_damaged_squares_are_rendered_again(copy: Path, images: Path, one: Teachers) -> None:
    before = files(copy, "squares")
    view_id = stored_views(read_manifest(locate(copy)))[1]
    shard = copy / "squares" / view_id / "content" / "c" / "2" / "0"
    shard.write_bytes(shard.read_bytes()[:500] + b"?" + shard.read_bytes()[501:])
    (fault,) = verify(copy).faults
    assert (fault.group, fault.view, fault.unit) == ("squares", view_id, 2)
    with pytest.raises(UsageError, match=r"original images[\s\S]*--data"):
        repair_cache(RepairConfig(cache=str(copy)))
    summary = repair_cache(RepairConfig.parse({"cache": str(copy), "data": str(images)}, ""))
    assert (summary.recomputed, summary.differing, summary.remaining) == (1, 0, ())
    assert files(copy, "squares") == before


def test_damaged_samples_and_outputs_are_computed_again(
    copy: Path, images: Path, one: Teachers
) -> None:
    before = files(copy, "samples", "teachers")
    for path in ("samples/digest/c/1/0", "teachers/cnn/logp/c/1/2/0"):
        content = bytearray((copy / path).read_bytes())
        content[3] ^= 1
        (copy / path).write_bytes(content)
    values = {"cache": str(copy), "data": str(images), "teachers": one}
    assert repair_cache(RepairConfig.parse(values, "")).differing == 0
    assert files(copy, "samples", "teachers") == before


@pytest.mark.requirement("F5.17", "F11.21")
def test_squares_stay_as_long_as_a_view_needs_them(copy: Path) -> None:
    eval_id, first, turned, second, _ = open_cache(copy).views
    drop_from_cache(copy, views=[first])
    assert stored_views(read_manifest(locate(copy))) == [eval_id, first, second]
    assert verify(copy).ok
    drop_from_cache(copy, views=[turned])
    cache = open_cache(copy)
    assert f"squares/{first}" not in cache.revision.ledgers
    assert not list((copy / "commits" / "squares").glob(f"{first}/*"))
    assert verify(copy).ok
    collect_garbage(copy, remove=True, grace_seconds=0)
    assert not (copy / "squares" / first).exists()
    assert verify(copy).ok


def test_slices_and_merges_equal_computed_caches(
    built: Path, images: Path, one: Teachers, tmp_path: Path
) -> None:
    cats = RowSelection(classes=("cat",))
    rest = RowSelection(classes=("bird", "dog"))
    slice_cache(built, tmp_path / "cats", rows=cats)
    slice_cache(built, tmp_path / "rest", rows=rest)
    assert verify(tmp_path / "cats").ok
    merge_caches([tmp_path / "cats", tmp_path / "rest"], tmp_path / "whole")
    parts = ("squares", "samples", "teachers")
    assert files(tmp_path / "whole", *parts) == files(built, *parts)
    slice_cache(built, tmp_path / "one", views=["1"])
    first = list(open_cache(built).views)[1]
    assert [path.name for path in (tmp_path / "one" / "squares").iterdir() if path.is_dir()] == [
        first
    ]
    build_cache(config(tmp_path / "other", images, one, images="views:8", views={"count": 1}))
    build_cache(config(tmp_path / "plain", images, one, views={"count": 1}))
    with pytest.raises(UsageError, match="same size and quality"):
        merge_caches([tmp_path / "other", tmp_path / "plain"], tmp_path / "none")


def test_a_cache_without_views_does_not_get_any(
    one: Teachers, images: Path, tmp_path: Path
) -> None:
    build_cache(config(tmp_path, images, one))
    with pytest.raises(UsageError, match="no images in the cache"):
        build_cache(stored(tmp_path, images, one))


@pytest.mark.requirement("F2.5.8")
def test_readers_that_do_not_know_stored_views_refuse_them(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(FEATURES, "stored-views")
    with pytest.raises(UnsupportedFormat, match="stored-views"):
        open_cache(built)


@pytest.mark.requirement("F12.14")
@pytest.mark.parametrize("how", ["side", "unit_rows", "both", "unrequired"])
def test_impossible_declarations_are_refused(copy: Path, how: str) -> None:
    document = json.loads((copy / "zarr.json").read_text())
    root = document["attributes"]["logitcache"]
    if how == "both":
        root["images"] = {"kind": "packed", "side": 8, "quality": 92, "unit_rows": 16}
    elif how == "unrequired":
        root["requires"].remove("stored-views")
    else:
        root["squares"][how] = {"side": 5000, "unit_rows": 48}[how]
    (copy / "zarr.json").write_text(json.dumps(document))
    with pytest.raises(CacheError, match="the manifest is damaged"):
        open_cache(copy)


def test_the_summary_and_the_description_have_the_bytes(built: Path) -> None:
    found = describe(built).images_in_cache
    assert found is not None
    assert (found.kind, found.side, found.units, found.needed) == ("views", 8, 12, 12)
    assert found.stored_bytes == sum(
        path.stat().st_size for path in (built / "squares").glob("*/**/*") if path.is_file()
    )


def test_a_side_may_be_given() -> None:
    assert str(ImagesConfig.parse("views:24", "images")) == "views:24, quality 92"
    assert simplejpeg.decode_jpeg(encode_jpeg(np.zeros((8, 8, 3), np.uint8), 92)).shape == (8, 8, 3)


def test_originals_that_changed_are_refused(
    copy: Path, one: Teachers, images: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(images, tmp_path / "other"))
    (other / "cat" / "003.jpg").write_bytes((images / "dog" / "004.jpg").read_bytes() + b"\0")
    with pytest.raises(DataMismatch, match=r"1 of another size: cat/003\.jpg"):
        build_cache(stored(copy, other, one, views={**VIEWS, "count": 3}))
