"""A slice with fewer classes or bits is nearly what computing with that encoding gives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from logitcache.cache.format.manifest import read_manifest
from logitcache.cache.read.reader import open_cache
from logitcache.cache.store.open import locate
from logitcache.cache.verify.integrity import verify
from logitcache.encoding.sparse import SparseEncoding
from logitcache.errors import UsageError
from logitcache.share.comparing import compare_caches
from logitcache.share.row_selection import RowSelection
from logitcache.share.slicing import slice_cache
from tests.share import caches
from tests.share.caches import CLASSES, VIEWS, Part, build, computed_files, files_of, keys_of

if TYPE_CHECKING:
    from pathlib import Path

KEYS = keys_of(60)
SMALL = {"dense": SparseEncoding(CLASSES, 2), "sparse": SparseEncoding.new(CLASSES, 2, bits=5)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "whole"
    build(path, Part([KEYS]))
    return path


@pytest.mark.requirement("F13.6.1")
def test_it_has_the_arrays_of_a_cache_that_is_computed_in_this_encoding(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files_of(whole)
    chosen = [key for key in KEYS if not key.startswith("eel")]
    rows = RowSelection(keys=frozenset(chosen))
    summary = slice_cache(whole, tmp_path / "slice", rows=rows, top_k=2, bits=5)
    assert files_of(whole) == before
    encodings = {"dense": SparseEncoding.new(CLASSES, 2, bits=5), "sparse": SMALL["sparse"]}
    monkeypatch.setattr(caches, "TEACHERS", encodings)
    # units have the default size, also where those of the source are smaller
    monkeypatch.setattr(caches, "UNIT_ROWS", dict.fromkeys(encodings, caches.UNIT))
    build(tmp_path / "computed", Part([chosen]))
    ours, theirs = (computed_files(tmp_path / name) for name in ("slice", "computed"))
    assert ours.keys() == theirs.keys()
    outputs = ("teachers/dense/c", "teachers/dense/t", "teachers/sparse/c", "teachers/sparse/t")
    derived = {n for n in ours if n.startswith((*outputs, "commits/teachers", "ledger/teachers"))}
    assert {n for n in ours if ours[n] != theirs[n]} <= derived
    assert verify(tmp_path / "slice").ok
    small, exact = (open_cache(tmp_path / name) for name in ("slice", "computed"))
    for teacher, encoding in encodings.items():
        for view in VIEWS:
            names = ["class_ids", "codes", "lse"]
            found, computed = (c.read(teacher, view, 0, 48, names) for c in (small, exact))
            assert np.array_equal(found["lse"], computed["lse"], equal_nan=True)
            same = (found["class_ids"] == computed["class_ids"]).all(axis=1)
            assert same.mean() > 0.8  # others have a second class of the same code
            assert encoding == small.teachers[teacher].encoding
    record = read_manifest(locate(tmp_path / "slice"))
    assert [teacher.fidelity for teacher in record.teachers.values()] == [None, None]
    assert record.derived_from is not None
    assert record.derived_from.selection["top_k"] == 2
    assert summary.encoded > 0


def test_teachers_with_fewer_classes_and_features_are_copied_as_bytes(
    whole: Path, tmp_path: Path
) -> None:
    summary = slice_cache(whole, tmp_path / "slice", top_k=4)  # as many as "sparse" has
    assert [note.partition(" is stored")[0] for note in summary.notes] == ["teacher sparse"]
    before, after = files_of(whole), files_of(tmp_path / "slice")
    shards = {n for n in before if "/c/" in n and not n.startswith("teachers/dense/")}
    assert all(before[name] == after[name] for name in shards)
    assert {n for n in before if n.startswith("teachers/dense/features") and "/c/" in n} <= {
        n for n in after if before.get(n) == after[n]
    }
    assert summary.encoded == 2 * 4  # units of the two views of one teacher


def test_what_is_lost_is_seen_by_a_comparison(whole: Path, tmp_path: Path) -> None:
    slice_cache(whole, tmp_path / "slice", top_k=1)
    found = compare_caches(whole, tmp_path / "slice")
    outputs = [value for value in found.values if "features" not in value.group]
    assert all(value.differing and value.noise is None for value in outputs)
    assert {value.group for value in outputs} == {"dense", "sparse"}


def test_an_interrupted_slice_continues(whole: Path, tmp_path: Path) -> None:
    def stop(progress: Any) -> None:
        if progress.done > 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        slice_cache(whole, tmp_path / "parts", top_k=2, on_progress=stop)
    with pytest.raises(UsageError, match="another cache"):
        slice_cache(whole, tmp_path / "parts", top_k=3)
    slice_cache(whole, tmp_path / "parts", top_k=2)
    slice_cache(whole, tmp_path / "whole", top_k=2)
    assert files_of(tmp_path / "parts") == files_of(tmp_path / "whole")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"top_k": CLASSES}, "no teacher stores more"),
        ({"bits": 8}, "no teacher stores more"),
        ({"top_k": 0}, "out of range"),
        ({"bits": 3}, "4 to 8"),
    ],
)
def test_sizes_that_are_not_possible(
    whole: Path, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        slice_cache(whole, tmp_path / "slice", **options)
    assert not (tmp_path / "slice").exists()
