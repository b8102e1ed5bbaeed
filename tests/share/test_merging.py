"""A merge is what computing all images, views and teachers at once would have given."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from logitcache.cache.read.reader import open_cache
from logitcache.cache.verify.integrity import verify
from logitcache.cache.write.exclude import withdraw_images
from logitcache.encoding.sparse import SparseEncoding
from logitcache.errors import DataMismatch, UsageError
from logitcache.share.merging import merge_caches
from logitcache.share.row_selection import RowSelection
from logitcache.share.slicing import slice_cache
from logitcache.share.transfer import push
from tests.share import caches
from tests.share.caches import MIXED, VIEWS, Part, build, computed_files, files_of, keys_of
from tests.share.counted import CountedLocation

if TYPE_CHECKING:
    from pathlib import Path

KEYS = keys_of(60)
FIRST, SECOND = list(VIEWS)
SMALL: dict[str, Any] = {"teachers": ["sparse"], "taps": [], "views": [FIRST]}


def build_all(folder: Path, **parts: Part) -> list[Path]:
    for name, part in parts.items():
        build(folder / name, part)
    return [folder / name for name in parts]


def assert_computed(path: Path, part: Part, folder: Path) -> None:
    build(folder / "computed", part)
    assert computed_files(path) == computed_files(folder / "computed")
    report = verify(path)
    assert report.ok, report.faults
    assert not report.orphans
    ours, theirs = (open_cache(p).manifest for p in (path, folder / "computed"))
    assert ours.data.fingerprint == theirs.data.fingerprint
    assert ours.teachers == theirs.teachers
    assert ours.views == theirs.views


@settings(max_examples=3, phases=[Phase.explicit, Phase.generate])
@given(seed=st.integers(0, 2**32))
@example(seed=1484049)  # the first row of a unit is the only image of a unit of its part
def test_a_cache_that_is_cut_into_five_random_parts_and_merged_is_the_same(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("five")
    generator = random.Random(seed)
    part_of = {key: generator.randrange(5) for key in KEYS}
    build(folder / "whole", Part([KEYS], taps=["a"], views=[FIRST]))
    parts = [folder / f"part-{number}" for number in sorted(set(part_of.values()))]
    for path in parts:
        number = int(path.name[-1])
        keys = frozenset(key for key in KEYS if part_of[key] == number)
        slice_cache(folder / "whole", path, rows=RowSelection(keys=keys))
    before = [files_of(path) for path in parts]
    merge_caches(parts, folder / "merged")
    assert computed_files(folder / "merged") == computed_files(folder / "whole")
    assert [files_of(path) for path in parts] == before
    ours, theirs = (open_cache(folder / name) for name in ("merged", "whole"))
    assert ours.manifest.data == theirs.manifest.data
    assert ours.manifest.teachers == theirs.manifest.teachers
    probes = [
        {(p["view"], p["row"]) for document in cache.probes() for p in document.probes}
        for cache in (ours, theirs)
    ]
    assert probes[0] == probes[1]


def test_views_teachers_and_taps_of_equal_images_are_copied_as_bytes(tmp_path: Path) -> None:
    segments = [KEYS[:40], KEYS[40:]]
    sources = build_all(
        tmp_path,
        a=Part(segments, [FIRST], ["dense"], ["a"]),
        b=Part(segments, [FIRST, SECOND], ["sparse"]),
        c=Part(segments, [FIRST], ["dense"], ["b"]),
        d=Part(segments, [SECOND], ["dense"], ["a", "b"]),
    )
    counted, made = list(map(CountedLocation, sources)), CountedLocation(tmp_path / "merged")
    summary = merge_caches(counted, made)
    assert summary.encoded == 0
    assert_computed(tmp_path / "merged", Part(segments), tmp_path)
    assert summary.bytes_written == made.bytes_written.total()
    assert not made.reads
    # samples with equal digests are read once, of any of the sources
    reads = sum((Counter(source.shard_reads) for source in counted), Counter[str]())
    shards = {name: c for name, c in files_of(tmp_path / "merged").items() if "/c/" in name}
    samples = {name for name in shards if name.startswith("samples/")}
    assert {key: reads[key] for key in samples} == dict.fromkeys(samples, 1)
    read = sum(source.bytes_read[key] for source in counted for key in source.shard_reads)
    assert read == sum(map(len, shards.values()))


def test_rows_of_two_halves_are_those_of_the_whole(tmp_path: Path) -> None:
    sources = build_all(tmp_path, a=Part([KEYS[::2]]), b=Part([KEYS[1::2]]))
    counted, made = list(map(CountedLocation, sources)), CountedLocation(tmp_path / "merged")
    summary = merge_caches(counted, made)
    assert all(set(source.reads.values()) == {1} for source in counted)
    assert not made.reads
    assert_computed(tmp_path / "merged", Part([KEYS]), tmp_path)
    assert summary.images == 60
    manifest = json.loads((tmp_path / "merged/zarr.json").read_bytes())["attributes"]["logitcache"]
    digests = [open_cache(path).revision_sha256 for path in sources]
    assert [p["revision"]["sha256"] for p in manifest["derived_from"]["parts"]] == digests
    assert [p["images"] for p in manifest["derived_from"]["parts"]] == [30, 30]
    revision = json.loads((tmp_path / "merged/revisions/1.json").read_bytes())
    assert revision["parents"] == digests


def test_appended_rows_are_those_of_a_cache_that_has_grown(tmp_path: Path) -> None:
    views = [FIRST, *MIXED]
    sources = build_all(
        tmp_path, a=Part([KEYS[:20]], views=views), b=Part([KEYS[20:30], KEYS[30:]], views=views)
    )
    counted = list(map(CountedLocation, sources))
    summary = merge_caches(counted, tmp_path / "merged", append=True)
    assert summary.encoded == 0
    segments = [KEYS[:20], KEYS[20:30], KEYS[30:]]
    assert_computed(tmp_path / "merged", Part(segments, views), tmp_path)
    shards = sum(len(c) for n, c in files_of(tmp_path / "merged").items() if "/c/" in n)
    read = sum(one.bytes_read[key] for one in counted for key in one.shard_reads)
    assert read <= shards
    assert all(set(source.reads.values()) == {1} for source in counted)
    with pytest.raises(UsageError, match="only with whole blocks"):
        merge_caches(sources, tmp_path / "ordered")
    assert not (tmp_path / "ordered").exists()


def test_caches_with_other_units_are_merged_row_by_row(tmp_path: Path) -> None:
    sources = build_all(
        tmp_path, a=Part([KEYS[::2]], **SMALL), b=Part([KEYS[1::2]], unit=32, **SMALL)
    )
    merge_caches(sources, tmp_path / "merged")
    assert_computed(tmp_path / "merged", Part([KEYS], **SMALL), tmp_path)


def test_caches_may_overlap_where_their_values_are_equal(tmp_path: Path) -> None:
    sources = build_all(tmp_path, a=Part([KEYS[:40]], **SMALL), b=Part([KEYS[20:]], **SMALL))
    merge_caches(sources, tmp_path / "merged")
    assert_computed(tmp_path / "merged", Part([KEYS], **SMALL), tmp_path)


def test_exclusions_of_all_parts_are_kept(tmp_path: Path) -> None:
    sources = build_all(tmp_path, a=Part([KEYS[::2]], **SMALL), b=Part([KEYS[1::2]], **SMALL))
    withdraw_images(sources[0], [KEYS[2]], "one")
    withdraw_images(sources[1], [KEYS[3]], "two")
    merge_caches(sources, tmp_path / "merged")
    assert open_cache(tmp_path / "merged").withdrawn == {KEYS[2], KEYS[3]}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (Part([KEYS[20:]], seed="x", **SMALL), r"sparse, view v\w+: 17 rows are in several caches"),
        (Part([KEYS[30:]], **{**SMALL, "views": [SECOND]}), "images have no outputs in any"),
        (Part([KEYS[30:]], **{**SMALL, "teachers": ["dense"]}), "images have no outputs in any"),
    ],
    ids=["values", "views", "teachers"],
)
def test_conflicts_of_outputs_are_named_before_anything_is_written(
    tmp_path: Path, other: Part, message: str
) -> None:
    sources = build_all(tmp_path, a=Part([KEYS[:40]], **SMALL), b=other)
    with pytest.raises(DataMismatch, match="cannot be merged") as caught:
        merge_caches(sources, tmp_path / "merged")
    assert re.search(message, caught.value.render())
    assert not (tmp_path / "merged").exists()


def test_conflicts_of_images_classes_and_teachers_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(tmp_path / "a", Part([KEYS[:20]], **SMALL))
    monkeypatch.setattr(caches, "CLASS_NAMES", ("bird", "cat", "dog", "emu"))
    build(tmp_path / "classes", Part([KEYS[20:]], **SMALL))
    monkeypatch.undo()
    monkeypatch.setattr(caches, "label_of", lambda key: 0)
    build(tmp_path / "labels", Part([KEYS[10:40]], **SMALL))
    monkeypatch.undo()
    monkeypatch.setattr(caches, "TEACHERS", {"sparse": SparseEncoding(12, 4, "codes", 8)})
    build(tmp_path / "bits", Part([KEYS[20:]], **SMALL))
    monkeypatch.undo()
    for name, message in (
        ("classes", "data.class_names differs"),
        ("labels", "images have another label than in"),
        ("bits", "sparse has another encoding"),
    ):
        with pytest.raises(DataMismatch) as caught:
            merge_caches([tmp_path / "a", tmp_path / name], tmp_path / "merged")
        assert message in caught.value.render()
        assert not (tmp_path / "merged").exists()


def test_one_cache_and_a_destination_in_a_source_are_refused(tmp_path: Path) -> None:
    build(tmp_path / "a", Part([KEYS[:16]], **SMALL))
    with pytest.raises(UsageError, match="two caches or more"):
        merge_caches([tmp_path / "a"], tmp_path / "merged")
    before = files_of(tmp_path / "a")
    (tmp_path / "link").symlink_to(tmp_path / "a", target_is_directory=True)
    for path in (tmp_path / "a", tmp_path / "link", tmp_path / "x/../a", tmp_path / "a/inside"):
        with pytest.raises(UsageError, match="destination is a source"):
            merge_caches([tmp_path / "a", tmp_path / "a"], path)
        with pytest.raises(UsageError, match="destination is a source"):
            slice_cache(tmp_path / "a", path)
        with pytest.raises(UsageError, match="destination is the source"):
            push(tmp_path / "a", path)
    assert files_of(tmp_path / "a") == before
    slice_cache(tmp_path / "a", tmp_path / "ab")  # a name that only begins like the source's
