"""Slices and merges of a cache whose images have label sets and whose teacher has a sigmoid."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from logitcache.cache.read.reader import open_cache
from logitcache.cache.verify.integrity import verify
from logitcache.errors import DataMismatch, UsageError
from logitcache.precompute.build import build_cache
from logitcache.precompute.config import PrecomputeConfig
from logitcache.share.merging import merge_caches
from logitcache.share.row_selection import RowSelection
from logitcache.share.slicing import slice_cache
from tests.conftest import write_teacher
from tests.label_set_images import TAGS, sets_of, write_listing
from tests.share.caches import computed_files

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

Sets = dict[str, list[str] | None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder for teachers, and for caches that :func:`build` writes."""
    return tmp_path_factory.mktemp("label-sets")


@pytest.fixture(scope="module")
def whole(images: Path, folder: Path) -> Path:
    return build(folder, "whole", images, sets_of(images))


def build(folder: Path, name: str, images: Path, sets: Sets, names: Sequence[str] = TAGS) -> Path:
    """Compute the cache of some images with these classes."""
    listing = folder / f"{name}.jsonl"
    teacher = folder / f"teacher-{len(names)}"
    if not teacher.exists():
        write_teacher(teacher, classes=len(names), model="cnn")
    values: dict[str, Any] = {
        "cache": str(folder / name),
        "data": write_listing(images, listing, sets, names),
        "teachers": {"t": {"model": f"local-dir:{teacher}", "head": "sigmoid"}},
        "views": {"count": 2},
        "unit_rows": 16,
    }
    build_cache(PrecomputeConfig.parse(values, ""))
    return folder / name


def shards_of(path: Path) -> dict[str, bytes]:
    """Return the shards of a cache by path."""
    return {name: content for name, content in computed_files(path).items() if "/c/" in name}


@pytest.mark.parametrize("classes", [("house",), ("cat", "bird")])
def test_images_with_any_of_the_classes_are_sliced(
    classes: tuple[str, ...], whole: Path, images: Path, folder: Path, tmp_path: Path
) -> None:
    """The width of the sets stays that of the whole cache, so both have one of four classes."""
    some: Sets = {k: tags for k, tags in sets_of(images).items() if set(classes) & {*(tags or ())}}
    assert 0 < len(some) < len(sets_of(images))
    slice_cache(whole, tmp_path / "slice", rows=RowSelection(classes))
    found = open_cache(tmp_path / "slice").samples
    assert set(found.keys[found.rows]) == set(some)
    computed = build(folder, "-".join(classes), images, some)
    assert shards_of(tmp_path / "slice") == shards_of(computed)
    assert verify(tmp_path / "slice").ok


def test_an_unknown_class_of_label_sets_is_refused(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no class 'hous'[\s\S]*house"):
        slice_cache(whole, tmp_path / "slice", rows=RowSelection(("hous",)))


def test_slices_are_merged_to_the_whole_cache(whole: Path, tmp_path: Path) -> None:
    parts = [tmp_path / "low", tmp_path / "high"]
    for path, share in zip(parts, [(0.0, 0.4), (0.4, 1.0)], strict=True):
        slice_cache(whole, path, rows=RowSelection(share=share))
    merge_caches(parts, tmp_path / "merged")
    assert shards_of(tmp_path / "merged") == shards_of(whole)
    ours, theirs = open_cache(tmp_path / "merged"), open_cache(whole)
    assert ours.manifest.data == theirs.manifest.data
    assert ours.manifest.teachers == theirs.manifest.teachers
    assert "label-sets" in ours.manifest.to_json()["requires"]
    assert verify(tmp_path / "merged").ok


@pytest.mark.parametrize("first", ["narrow", "wide"])
def test_label_sets_are_filled_up_to_those_of_the_part_with_the_most_classes_of_an_image(
    first: str, images: Path, folder: Path, tmp_path: Path
) -> None:
    names = [f"c{number:02d}" for number in range(12)]
    keys = list(sets_of(images))
    few: Sets = {key: names[i % 11 :][:2] if i % 7 else None for i, key in enumerate(keys[::2])}
    many: Sets = {key: names[i % 4 :][:7] for i, key in enumerate(keys[1::2])}
    parts = {
        "narrow": build(folder, f"narrow-{first}", images, few, names),
        "wide": build(folder, f"wide-{first}", images, many, names),
    }
    computed = build(folder, f"both-{first}", images, few | many, names)
    widths = [open_cache(path).manifest.data.label_width for path in (*parts.values(), computed)]
    assert widths == [4, 12, 12]
    other = next(name for name in parts if name != first)
    merge_caches([parts[first], parts[other]], tmp_path / "merged")
    assert shards_of(tmp_path / "merged") == shards_of(computed)
    ours, theirs = (open_cache(p).manifest.data for p in (tmp_path / "merged", computed))
    assert ours.model_copy(update={"description": theirs.description}) == theirs
    assert verify(tmp_path / "merged").ok
    merge_caches([parts[first], parts[other]], tmp_path / "appended", append=True)
    sets = open_cache(tmp_path / "appended").samples.label_sets
    assert sets is not None
    found = open_cache(tmp_path / "appended").samples
    for row in found.rows.tolist():
        expected = (few | many)[found.keys[row]]
        of_row = sets.take(np.array([row]))
        assert [names[c] for c in of_row.ids] == (expected or [])
        assert bool(of_row.known[0]) == (expected is not None)
    assert verify(tmp_path / "appended").ok


def test_one_class_and_label_sets_are_not_merged(
    images: Path, folder: Path, tmp_path: Path
) -> None:
    keys = list(sets_of(images))
    one: dict[str, Any] = {key: TAGS[i % 4] for i, key in enumerate(keys[::2])}
    several: Sets = {key: [TAGS[i % 4]] for i, key in enumerate(keys[1::2])}
    parts = [build(folder, "one", images, one), build(folder, "several", images, several)]
    for order in (parts, parts[::-1]):
        with pytest.raises(DataMismatch, match=r"data\.label_width differs"):
            merge_caches(order, tmp_path / "merged")


def test_parts_with_other_classes_of_an_image_are_not_merged(
    whole: Path, images: Path, folder: Path, tmp_path: Path
) -> None:
    sets = sets_of(images)
    key = next(key for key, tags in sets.items() if tags and "house" not in tags)
    other = build(folder, "other", images, {**sets, key: ["house"]})
    with pytest.raises(DataMismatch, match=key):
        merge_caches([whole, other], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
