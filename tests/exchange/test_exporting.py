"""Exported files, read by code that knows the formats alone, have the cache's probabilities."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from logitcache.cache.read.reader import open_cache
from logitcache.cache.write.exclude import withdraw_images
from logitcache.errors import UsageError
from logitcache.exchange.exporting import export_outputs
from logitcache.exchange.tinyvit import half_probabilities
from tests.share.caches import CLASSES, VIEWS, Part, build, files_of, keys_of

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

KEYS = keys_of(36)
EXCLUDED = next(key for key in KEYS if key.startswith("dog"))
HALF = 2e-3  # float16, and the rest of rounded numbers
SHOWN = [key for key in KEYS if not key.startswith("bad") and key != EXCLUDED]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exports") / "cache"
    build(path, Part([KEYS]))
    withdraw_images(path, [EXCLUDED], reason="test")
    return path


def probabilities(cache: Path, teacher: str) -> dict[str, dict[str, NDArray[Any]]]:
    """Return the probabilities of each view and image as a student of the cache gets them."""
    opened = open_cache(cache)
    group, samples = opened.teachers[teacher], opened.samples
    found = {}
    for view in VIEWS:
        names = list(group.encoding.specs())
        decoded = group.encoding.decode(opened.read(teacher, view, 0, opened.rows_end, names))
        probs = np.exp(decoded.dense_log_probs())
        found[view] = {str(samples.keys[row]): probs[row] for row in samples.readable}
    return found


def assert_equal(
    found: dict[str, NDArray[Any]], expected: dict[str, NDArray[Any]], tolerance: float
) -> None:
    assert set(found) == set(SHOWN)
    for key, row in found.items():
        np.testing.assert_allclose(row, expected[key], rtol=tolerance, atol=tolerance / 16)


def spread(ids: NDArray[Any], probs: NDArray[Any]) -> NDArray[Any]:
    """Return all classes, of which the absent ones share the rest evenly."""
    row = np.full(CLASSES, (1 - probs.sum(dtype=np.float64)) / max(1, CLASSES - len(ids)))
    row[ids] = probs
    return row


def read_tinyvit(folder: Path, top_k: int) -> dict[str, NDArray[Any]]:
    """Read an epoch as TinyViT's dataset does: a line of keys, then bytes of a record."""
    size, found = 4 * top_k + 4, {}
    values = (folder / "rank0-values.bin").read_bytes()
    for number, line in enumerate((folder / "rank0-keys.txt").read_text().splitlines()):
        record = values[number * size : (number + 1) * size]
        ids = np.frombuffer(record[4 : 4 + 2 * top_k], np.int16)
        probs = np.frombuffer(record[4 + 2 * top_k :], np.float16).astype(np.float64)
        assert (np.diff(probs) <= 0).all()
        found[line.strip()] = spread(ids, probs)
    assert len(values) == size * len(found)
    return found


@pytest.mark.parametrize(("teacher", "top_k"), [("sparse", 4), ("sparse", 7), ("dense", 12)])
def test_records_of_tinyvit_have_the_probabilities_of_the_cache(
    cache: Path, tmp_path: Path, teacher: str, top_k: int
) -> None:
    out = tmp_path / "records"
    summary = export_outputs(cache, out, format="tinyvit", teacher=teacher, top_k=top_k)
    assert (summary.images, summary.views, summary.top_k) == (len(SHOWN), 2, top_k)
    assert summary.left_out == len(KEYS) - len(SHOWN)
    expected = probabilities(cache, teacher)
    for number, view in enumerate(VIEWS):
        found = read_tinyvit(out / f"logits_top{top_k}_epoch{number}", top_k)
        assert_equal(found, expected[view], HALF)


def test_fewer_classes_than_stored_share_the_rest_evenly(cache: Path, tmp_path: Path) -> None:
    export_outputs(cache, tmp_path / "two", format="tinyvit", teacher="dense", top_k=2)
    expected = probabilities(cache, "dense")[next(iter(VIEWS))]
    for key, row in read_tinyvit(tmp_path / "two" / "logits_top2_epoch0", 2).items():
        two = np.argsort(-expected[key])[:2]
        np.testing.assert_allclose(row, spread(two, expected[key][two]), rtol=2e-3, atol=1e-3)


def test_positions_are_those_of_an_image_folder(cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "records"
    export_outputs(cache, out, format="tinyvit", teacher="sparse", positions=True, top_k=4)
    expected = probabilities(cache, "sparse")[next(iter(VIEWS))]
    listed = sorted(KEYS)  # one level of folders, so ImageFolder's order is that of the paths
    found = read_tinyvit(out / "logits_top4_epoch0", 4)
    assert_equal({listed[int(key)]: row for key, row in found.items()}, expected, HALF)


def test_arrays_of_numpy_have_the_log_probabilities_of_the_cache(
    cache: Path, tmp_path: Path
) -> None:
    for teacher in ("dense", "sparse"):
        out = tmp_path / f"{teacher}.npz"
        export_outputs(cache, out, format="npz", teacher=teacher)
        expected = probabilities(cache, teacher)
        with np.load(out) as file:
            assert file["views"].tolist() == list(VIEWS)
            for number, view in enumerate(VIEWS):
                rows = np.exp(file["log_probs"][number])
                if teacher == "sparse":
                    ids = file["class_ids"][number]
                    rows = np.array([spread(i, p) for i, p in zip(ids, rows, strict=True)])
                found = dict(zip(file["keys"].tolist(), rows, strict=True))
                assert_equal(found, expected[view], 1e-5)


def test_parquet_has_a_row_for_each_image_and_view(cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "outputs.parquet"
    export_outputs(cache, out, format="parquet", teacher="sparse", views=["1"])
    table = pq.read_table(out)
    view = list(VIEWS)[1]
    assert set(table["view"].to_pylist()) == {view}
    assert table.schema.metadata[b"teacher"] == b"sparse"
    assert json.loads(table.schema.metadata[b"class_names"]) == ["bird", "cat", "dog", "eel"]
    found = {
        row["key"]: spread(np.array(row["class_ids"]), np.exp(np.array(row["log_probs"])))
        for row in table.to_pylist()
    }
    assert_equal(found, probabilities(cache, "sparse")[view], 1e-5)


def test_equal_exports_are_equal_files_and_leave_nothing_else(cache: Path, tmp_path: Path) -> None:
    before = files_of(cache)
    (tmp_path / "a.npz.partial").write_bytes(b"of a process that was killed")
    for name in ("a.npz", "b.npz"):
        export_outputs(cache, tmp_path / name, format="npz", teacher="sparse")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "b.npz"]
    assert files_of(cache) == before


def test_a_failing_export_leaves_no_file(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_outputs(cache, tmp_path / "x", format="tinyvit", teacher="dense", on_progress=fail)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"format": "npy"}, "cannot be written"),
        ({"format": "npz", "teacher": "spares"}, "sparse"),
        ({"format": "npz"}, "which teacher"),
        ({"format": "npz", "teacher": "dense", "views": ["9"]}, "no view '9'"),
        ({"format": "npz", "teacher": "dense", "top_k": 13}, "1 to 12"),
    ],
)
def test_exports_that_are_not_possible(
    cache: Path, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        export_outputs(cache, tmp_path / "x", **options)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_not_replaced(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(b"somebody's")
    with pytest.raises(UsageError, match="already"):
        export_outputs(cache, tmp_path / "x.npz", format="npz", teacher="dense")
    assert (tmp_path / "x.npz").read_bytes() == b"somebody's"


@given(hnp.arrays(np.float32, (3, 40), elements=st.floats(-30, 0, width=32)), st.integers(1, 40))
def test_half_precision_never_sums_to_more_than_one(scores: NDArray[Any], top_k: int) -> None:
    exact = np.exp(scores.astype(np.float64))
    exact = np.sort(exact / exact.sum(axis=1, keepdims=True), axis=1)[:, -top_k:]
    found = half_probabilities(np.log(exact).astype(np.float32))
    assert (found.sum(axis=1, dtype=np.float64) <= 1).all()
    np.testing.assert_allclose(found.astype(np.float64), exact, rtol=2e-3, atol=2**-23)
