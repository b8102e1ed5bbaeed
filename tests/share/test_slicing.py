"""A slice is what computing with these images, views and teachers alone would have given."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from logitcache.cache.read.reader import open_cache
from logitcache.cache.verify.integrity import verify
from logitcache.cache.write.exclude import withdraw_images
from logitcache.data.identity import key_hash
from logitcache.data.readers import open_source
from logitcache.data.subset import SubsetSource
from logitcache.errors import CacheDamaged, UsageError
from logitcache.precompute.build import build_cache
from logitcache.precompute.config import PrecomputeConfig
from logitcache.share.row_selection import RowSelection, parse_share, read_keys
from logitcache.share.slicing import slice_cache
from logitcache.targets.images.fingerprint_check import check_fingerprints
from logitcache.targets.loader import loader
from tests.share.caches import MIXED, VIEWS, Part, build, computed_files, files_of, keys_of
from tests.share.counted import CountedLocation

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FIRST, SECOND = keys_of(40), keys_of(20, 40)
ARRAYS = ("samples/hash", "samples/digest", "samples/key", "teachers/dense/logp")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slices") / "whole"
    build(path, Part([FIRST, SECOND]))
    return path


def stamps(path: Path) -> dict[str, tuple[int, int]]:
    """Return time and inode of every file."""
    files = (p for p in path.rglob("*") if p.is_file())
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_ino) for p in files}


def shards_of(path: Path) -> dict[str, bytes]:
    return {name: content for name, content in files_of(path).items() if "/c/" in name}


def files_below(path: Path) -> list[bytes]:
    return list(files_of(path).values())


def assert_computed(path: Path, part: Part, folder: Path) -> None:
    """Compare a slice with a cache that is computed of these images, views and teachers."""
    build(folder / "computed", part)
    assert computed_files(path) == computed_files(folder / "computed")
    report = verify(path)
    assert report.ok, report.faults
    assert not report.orphans
    ours, theirs = (open_cache(p).manifest.to_json() for p in (path, folder / "computed"))
    for manifest in (ours, theirs):
        for field in ("derived_from", "revision"):
            manifest.pop(field, None)
    assert ours == theirs


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({}, {}),
        ({"views": ["1"]}, {"views": list(VIEWS)[1:2]}),
        ({"views": ["1", "0"]}, {}),
        ({"teachers": ["sparse"]}, {"teachers": ["sparse"]}),
        ({"features": ["dense/b"]}, {"taps": ["b"]}),
        ({"features": [], "views": ["0-1"]}, {"taps": []}),
    ],
    ids=["everything", "one view", "two views", "a teacher", "a tap", "no taps"],
)
def test_views_teachers_and_taps_are_copied_as_bytes(
    whole: Path, tmp_path: Path, options: dict[str, Any], part: dict[str, Any]
) -> None:
    before = stamps(whole)
    source, made = CountedLocation(whole), CountedLocation(tmp_path / "slice")
    summary = slice_cache(source, made, **options)
    assert stamps(whole) == before
    assert_computed(tmp_path / "slice", Part([FIRST, SECOND], **part), tmp_path)
    assert summary.encoded == 0
    shards = sum(map(len, shards_of(tmp_path / "slice").values()))
    assert sum(source.bytes_read[key] for key in source.shard_reads) <= shards
    assert not made.reads
    assert summary.bytes_read == source.bytes_read.total()
    assert summary.bytes_written == made.bytes_written.total()


def _threes_or_dog(key: str) -> bool:
    return "/0003" in key or key.startswith("dog")


def _some_cats(key: str) -> bool:
    return key.startswith("cat") and key_hash(key) < 0.9 * 2**64


@pytest.mark.parametrize(
    ("rows", "taken"),
    [
        (RowSelection(("cat", "eel")), lambda key: key.startswith(("cat", "eel"))),
        (
            RowSelection(patterns=("*/0003?.jpg", "dog/*")),
            lambda k: "/0003" in k or k.startswith("dog"),
        ),
        (RowSelection(keys=frozenset(FIRST[::7])), lambda key: key in FIRST[::7]),
        (RowSelection(keys=frozenset(SECOND)), lambda key: key in SECOND),
        (RowSelection(share=(0, 0.4)), lambda key: key_hash(key) < 0.4 * 2**64),
        (RowSelection(share=(0.4, 1)), lambda key: key_hash(key) >= 0.4 * 2**64),
        (
            RowSelection(("cat",), share=(0, 0.9)),
            lambda k: k.startswith("cat") and key_hash(k) < 0.9 * 2**64,
        ),
    ],
    ids=["classes", "patterns", "keys", "a segment", "a share", "the rest", "both"],
)
def test_rows_are_those_of_a_cache_that_is_computed_of_them(
    whole: Path, tmp_path: Path, rows: RowSelection, taken: Callable[[str], bool]
) -> None:
    slice_cache(whole, tmp_path / "slice", rows=rows)
    segments = [[key for key in keys if taken(key)] for keys in (FIRST, SECOND)]
    assert_computed(tmp_path / "slice", Part([keys for keys in segments if keys]), tmp_path)


@settings(max_examples=5, phases=[Phase.explicit, Phase.generate])
@given(
    chosen=st.sets(st.sampled_from([*FIRST, *SECOND]), min_size=1),
    views=st.sets(st.sampled_from(list(VIEWS)), min_size=1),
    unit=st.sampled_from([16, 64]),
)
def test_any_rows_and_views_are_those_of_a_cache_that_is_computed_of_them(
    tmp_path_factory: pytest.TempPathFactory, chosen: set[str], views: set[str], unit: int
) -> None:
    folder = tmp_path_factory.mktemp("any")
    content: dict[str, Any] = {"taps": [], "teachers": ["sparse"], "unit": unit}
    build(folder / "whole", Part([FIRST, SECOND], **content))
    rows = RowSelection(keys=frozenset(chosen))
    slice_cache(folder / "whole", folder / "slice", views=list(views), rows=rows)
    segments = [[key for key in keys if key in chosen] for keys in (FIRST, SECOND)]
    content["views"] = [view for view in VIEWS if view in views]
    part = Part([keys for keys in segments if keys], **content)
    assert_computed(folder / "slice", part, folder)


def test_a_share_by_hash_copies_whole_units(tmp_path: Path) -> None:
    """Rows of a segment are ordered by hash, so a share from 0 is the beginning of a segment."""
    content: dict[str, Any] = {"views": list(VIEWS)[:1], "teachers": ["dense"], "taps": []}
    build(tmp_path / "large", Part([keys_of(1200)], **content))
    rows = RowSelection(share=parse_share("0.5"))
    source = CountedLocation(tmp_path / "large")
    summary = slice_cache(source, tmp_path / "slice", rows=rows)
    assert summary.copied > 15 * summary.encoded > 0
    assert set(source.reads.values()) == {1}
    made = shards_of(tmp_path / "slice")
    units, read = (
        [sum(key.startswith(f"{array}/c/") for key in keys) for array in ARRAYS]
        for keys in (made, source.reads)
    )
    # the hashes of one more unit, at most, show where the share ends
    assert read[1:] == units[1:]
    assert units[0] <= read[0] <= units[0] + 1


@pytest.mark.parametrize("share", ["0.5", "0.2-0.7", "0.31-0.32", "0.99-1", "0.0001"])
@pytest.mark.parametrize("unit", [16, 64])
def test_a_share_has_the_images_whose_hashes_are_in_it(
    tmp_path: Path, share: str, unit: int
) -> None:
    """Only some of the hashes are read to find them; segments of one row and one unit have ends."""
    segments = [keys_of(300), keys_of(1, 300), keys_of(unit, 301), keys_of(50, 400)]
    content: dict[str, Any] = {"views": list(VIEWS)[:1], "teachers": ["dense"], "taps": []}
    build(tmp_path / "whole", Part(segments, **content, unit=unit))
    low, high = parse_share(share)
    chosen = [[key for key in keys if low <= key_hash(key) / 2**64 < high] for keys in segments]
    rows = RowSelection(share=(low, high))
    if not any(chosen):
        with pytest.raises(UsageError, match="no image of the cache is selected"):
            slice_cache(tmp_path / "whole", tmp_path / "slice", rows=rows)
        return
    slice_cache(tmp_path / "whole", tmp_path / "slice", rows=rows)
    part = Part([keys for keys in chosen if keys], **content, unit=unit)
    assert_computed(tmp_path / "slice", part, tmp_path)


def test_a_slice_of_a_slice_is_the_slice(whole: Path, tmp_path: Path) -> None:
    slice_cache(whole, tmp_path / "first", rows=RowSelection(("cat", "dog")))
    slice_cache(tmp_path / "first", tmp_path / "second", views=["1"], rows=RowSelection(("dog",)))
    slice_cache(whole, tmp_path / "direct", views=["1"], rows=RowSelection(("dog",)))
    assert computed_files(tmp_path / "second") == computed_files(tmp_path / "direct")


def test_views_that_mix_images_keep_their_partners(tmp_path: Path) -> None:
    views = [*VIEWS, *MIXED]
    build(tmp_path / "whole", Part([FIRST, SECOND], views=views))
    slice_cache(tmp_path / "whole", tmp_path / "slice", views=["1-2"], teachers=["dense"])
    part = Part([FIRST, SECOND], views=views[1:], teachers=["dense"])
    assert_computed(tmp_path / "slice", part, tmp_path)
    slice_cache(tmp_path / "whole", tmp_path / "second", rows=RowSelection(keys=frozenset(SECOND)))
    assert verify(tmp_path / "second").ok
    with pytest.raises(UsageError, match="only with whole blocks"):
        slice_cache(tmp_path / "whole", tmp_path / "part", rows=RowSelection(("cat",)))
    assert not (tmp_path / "part").exists()
    slice_cache(tmp_path / "whole", tmp_path / "part", views=["0-1"], rows=RowSelection(("cat",)))


def test_fingerprints_are_taken_with_their_images(whole: Path, tmp_path: Path) -> None:
    theirs = open_cache(whole)
    summary = slice_cache(whole, tmp_path / "slice", views=["1"], rows=RowSelection(("dog",)))
    ours = open_cache(tmp_path / "slice")
    known = {
        (probe["view"], theirs.samples.keys[probe["row"]])
        for document in theirs.probes()
        for probe in document.probes
    }
    found = {
        (probe["view"], ours.samples.keys[probe["row"]])
        for document in ours.probes()
        for probe in document.probes
    }
    assert found == {(v, key) for v, key in known if v in ours.views and key.startswith("dog")}
    assert found
    assert ours.probes()[0].segments == [start for start, _ in ours.revision.segments]
    assert not summary.notes
    few = slice_cache(whole, tmp_path / "few", rows=RowSelection(keys=frozenset(FIRST[:1])))
    assert "have no view fingerprint" in few.notes[0]


def test_excluded_images_stay_excluded_or_are_left_out(tmp_path: Path) -> None:
    build(tmp_path / "whole", Part([FIRST, SECOND], taps=[], teachers=["sparse"]))
    withdraw_images(tmp_path / "whole", [FIRST[1], FIRST[2]], "by mistake")
    slice_cache(tmp_path / "whole", tmp_path / "cats", rows=RowSelection(("cat",)))
    cats = open_cache(tmp_path / "cats")
    assert cats.withdrawn == {FIRST[1]}
    assert (
        json.loads((tmp_path / "cats" / "withdrawn/1.json").read_bytes())["reason"] == "by mistake"
    )
    rows = RowSelection(("cat",), excluded=False)
    slice_cache(tmp_path / "whole", tmp_path / "left", rows=rows)
    left = open_cache(tmp_path / "left")
    assert FIRST[1] not in left.samples.keys
    assert not left.withdrawn
    assert left.manifest.rows == cats.manifest.rows - 1


@pytest.mark.requirement("F12.11", "F12.12")
def test_a_slice_names_the_revision_that_it_was_cut_from(whole: Path, tmp_path: Path) -> None:
    slice_cache(whole, tmp_path / "slice", views=["1"], rows=RowSelection(("cat",)))
    manifest = json.loads((tmp_path / "slice/zarr.json").read_bytes())["attributes"]["logitcache"]
    digest = open_cache(whole).revision_sha256
    [part] = manifest["derived_from"]["parts"]
    assert manifest["derived_from"]["command"] == "slice"
    assert part["revision"] == {"number": 1, "sha256": digest}
    assert part["images"] == manifest["segments"][0]["rows"] + manifest["segments"][1]["rows"]
    assert manifest["derived_from"]["selection"]["classes"] == ["cat"]
    revision = json.loads((tmp_path / "slice/revisions/1.json").read_bytes())
    assert revision["parents"] == [digest]


def test_a_finished_slice_is_left_as_it_is_and_another_one_is_refused(
    whole: Path, tmp_path: Path
) -> None:
    slice_cache(whole, tmp_path / "slice", views=["1"])
    before = stamps(tmp_path / "slice")
    again = slice_cache(whole, tmp_path / "slice", views=["1"])
    assert (again.copied, again.encoded) == (0, 0)
    assert stamps(tmp_path / "slice") == before
    with pytest.raises(UsageError, match="has another cache"):
        slice_cache(whole, tmp_path / "slice", views=["0"])
    with pytest.raises(UsageError, match="has another cache"):
        slice_cache(tmp_path / "slice", whole)
    with pytest.raises(UsageError, match="the destination is a source"):
        slice_cache(whole, whole)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"views": ["9"]}, "no view '9'"),
        ({"teachers": ["dens"]}, "no teacher 'dens'"),
        ({"features": ["dense/c"]}, "no feature 'dense/c'"),
        ({"rows": RowSelection(("cow",))}, "no class 'cow'"),
        (
            {"rows": RowSelection(keys=frozenset(["cat/1.jpg"]))},
            "1 of the 1 keys are not in the cache",
        ),
        ({"rows": RowSelection(patterns=("horse/*",))}, "no image of the cache is selected"),
    ],
)
def test_what_does_not_exist_is_refused_before_anything_is_written(
    whole: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        slice_cache(whole, tmp_path / "slice", **options)
    assert not (tmp_path / "slice").exists()


@pytest.mark.parametrize("text", ["0", "1.5", "0.5-0.2", "a", "-0.1", ""])
def test_a_share_outside_of_0_to_1_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="share"):
        parse_share(text)


@pytest.mark.parametrize("share", [(0.5, 0.2), (-1.0, 2.0), (0.0, float("nan"))])
def test_a_selection_with_another_share_is_refused(share: tuple[float, float]) -> None:
    with pytest.raises(UsageError, match="share"):
        RowSelection(share=share)


def test_keys_are_read_from_a_list_of_any_editor(tmp_path: Path) -> None:
    (tmp_path / "keys.txt").write_bytes("\ufeffcat/1.jpg\r\n\r\n./cat/2.jpg\r\n".encode())
    assert read_keys(tmp_path / "keys.txt") == {"cat/1.jpg", "cat/2.jpg"}


def test_a_remote_cache_is_sliced_into_another_remote_one(whole: Path, tmp_path: Path) -> None:
    slice_cache(whole, "memory://slice-of-all")
    slice_cache("memory://slice-of-all", "memory://slice-of-cats", rows=RowSelection(("cat",)))
    slice_cache("memory://slice-of-cats", tmp_path / "cats")
    slice_cache(whole, tmp_path / "direct", rows=RowSelection(("cat",)))
    assert computed_files(tmp_path / "cats") == computed_files(tmp_path / "direct")


def test_a_damaged_source_is_refused_and_the_slice_can_be_continued(tmp_path: Path) -> None:
    build(tmp_path / "whole", Part([FIRST], taps=[], teachers=["sparse"]))
    codes = tmp_path / "whole/teachers/sparse/codes/c"
    shard = next(path for path in codes.rglob("*") if path.is_file())
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CacheDamaged):
        slice_cache(tmp_path / "whole", tmp_path / "slice")
    shard.write_bytes(content)
    slice_cache(tmp_path / "whole", tmp_path / "slice")
    assert computed_files(tmp_path / "slice") == computed_files(tmp_path / "whole")


def test_arrays_are_read_as_before(whole: Path, tmp_path: Path) -> None:
    """The same numbers by key, with the reader's own decoding."""
    slice_cache(whole, tmp_path / "slice", rows=RowSelection(share=(0.2, 0.7)))
    ours, theirs = open_cache(tmp_path / "slice"), open_cache(whole)
    rows = {key: row for row, key in enumerate(theirs.samples.keys)}
    where = [rows[key] for key in ours.samples.keys[ours.samples.rows]]
    for name in ours.groups:
        for view in ours.groups[name].view_ids:
            a = ours.read(name, view, 0, ours.rows_end)
            b = theirs.read(name, view, 0, theirs.rows_end)
            for array in a:
                np.testing.assert_array_equal(a[array][ours.samples.rows], b[array][where])


@pytest.mark.requirement("F13.6")
def test_a_slice_of_a_computed_cache_is_what_its_images_alone_give(
    images: Path, teachers: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    """Real networks and images; the measured losses stay those of the whole cache."""
    source = open_source(str(images))
    some = [n for n, key in enumerate(source.keys) if key.startswith("cat") or n % 4 == 0]
    values = {"teachers": {"cnn": teachers["cnn"]}, "views": {"count": 2}, "unit_rows": 16}
    for name, data in (("whole", source), ("computed", SubsetSource(source, some))):
        where = {"cache": str(tmp_path / name), "data": str(images)}
        config = PrecomputeConfig.parse({**values, **where}, "")
        build_cache(config, data=data)
    keys = frozenset(source.keys[n] for n in some)
    slice_cache(tmp_path / "whole", tmp_path / "slice", rows=RowSelection(keys=keys))
    slice_cache(tmp_path / "whole", tmp_path / "views", views=["0"])
    ours, computed, theirs, views = (
        open_cache(tmp_path / name) for name in ("slice", "computed", "whole", "views")
    )
    shards = {name: shards_of(tmp_path / name) for name in ("slice", "computed")}
    assert shards["slice"] == shards["computed"]
    assert ours.manifest.data.fingerprint == computed.manifest.data.fingerprint
    records = [cache.manifest.teachers["cnn"] for cache in (ours, computed, theirs, views)]
    assert records[0].accuracy == records[1].accuracy
    assert records[0].fidelity == records[2].fidelity == records[3].fidelity is not None
    assert b"measured" not in b"".join(files_below(tmp_path / "slice/ledger"))
    assert b"measured" in b"".join(files_below(tmp_path / "views/ledger"))
    report = check_fingerprints(ours, source)
    assert report.checked > 0
    assert report.drifted == report.skipped == 0
    batches = list(loader(ours, SubsetSource(source, some), batch_size=8, size=8))
    assert sum(len(pixels) for pixels, _ in batches) == len(some)
