"""Tables of paths and classes: the images of a folder under the same keys."""

from __future__ import annotations

import csv
import json
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from logitcache.data.readers import DataConfig, open_source
from logitcache.data.source import notes_of
from logitcache.errors import DataError, LogitcacheError, UsageError
from logitcache.testing import SourceContract
from logitcache.training.config import TrainConfig

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from logitcache.data.source import Source

Row = tuple[str, ...]


def rows_of(images: Path) -> list[Row]:
    files = sorted(images.rglob("*.jpg"))
    return [(str(file.relative_to(images)), file.parent.name) for file in files]


def write(path: Path, header: Row, rows: Sequence[Row]) -> Path:
    if path.suffix == ".parquet":
        arrow = pytest.importorskip("pyarrow")
        columns = zip(*rows, strict=True) if rows else [()] * len(header)
        columns_of_text = [arrow.array(column, arrow.string()) for column in columns]
        return write_parquet(path, arrow.table(dict(zip(header, columns_of_text, strict=True))))
    delimiter = "\t" if path.suffix == ".tsv" else ","
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([header, *rows])
    return path


def write_parquet(path: Path, table: Any) -> Path:
    pytest.importorskip("pyarrow.parquet").write_table(table, path)
    return path


def opened(table: Path, root: Path, **fields: Any) -> Source:
    return open_source(DataConfig(name=str(table), root=str(root), **fields))


class TestTable(SourceContract):
    @pytest.fixture
    def source(self, images: Path, tmp_path: Path) -> Source:
        return opened(write(tmp_path / "t.csv", ("path", "label"), rows_of(images)), images)


class TestParquet(SourceContract):
    @pytest.fixture
    def source(self, images: Path, tmp_path: Path) -> Source:
        return opened(write(tmp_path / "t.parquet", ("path", "label"), rows_of(images)), images)


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "T.CSV", "t.parquet"])
@pytest.mark.parametrize("header", [("path", "label"), ("Image", "Class"), ("file_name", "target")])
def test_it_lists_what_the_folder_lists(
    images: Path, tmp_path: Path, name: str, header: Row
) -> None:
    table = write(tmp_path / name, header, rows_of(images)[::-1])
    source, folder = opened(table, images), open_source(str(images))
    assert list(source.keys) == list(folder.keys)
    assert list(source.class_names) == list(folder.class_names)
    np.testing.assert_array_equal(source.labels, folder.labels)
    np.testing.assert_array_equal(source.sizes, folder.sizes)
    assert source.read(7) == folder.read(7)


def test_paths_are_relative_to_the_table_or_below_the_root(images: Path) -> None:
    rows = rows_of(images)
    table = write(images / "t.csv", ("path", "label"), rows)
    try:
        assert open_source(str(table)).read(0) == (images / rows[0][0]).read_bytes()
    finally:
        table.unlink()


def test_absolute_paths_and_backslashes(images: Path, tmp_path: Path) -> None:
    rows = rows_of(images)
    mixed = [(str(images / rows[0][0]), "a"), (rows[1][0].replace("/", "\\"), "b")]
    source = opened(write(tmp_path / "t.csv", ("path", "label"), mixed), images)
    assert list(source.keys) == [rows[0][0], rows[1][0]]


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_classes_are_numbered_over_all_splits(images: Path, tmp_path: Path, name: str) -> None:
    rows = rows_of(images)
    split = [(path, label, "train" if label != "bird" else "Valid") for path, label in rows]
    of_three: list[Row] = [*split[:-1], (*rows[-1], "test")]
    table = write(tmp_path / name, ("path", "label", "split"), of_three)
    train, val = (opened(table, images, split=name) for name in ("train", "val"))
    assert list(train.class_names) == list(val.class_names) == ["bird", "cat", "dog"]
    assert (len(train.keys), set(train.labels)) == (39, {1, 2})
    assert (len(val.keys), set(val.labels)) == (20, {0})
    assert train.left_out == {"rows of other splits": 21}  # type: ignore[attr-defined]  # it has


def test_validation_takes_its_split_from_the_same_table(images: Path, tmp_path: Path) -> None:
    table = str(write(tmp_path / "t.csv", ("path", "label", "split"), []))
    data = {"name": table, "root": str(images)}
    values = {"out": "-", "data": data, "val": data, "student": {"model": "resnet10t"}, "steps": 1}
    config = TrainConfig.parse(values, "")
    assert config.val is not None
    assert config.data is not None
    assert (config.data.split, config.val.split) == ("train", "val")


def test_images_without_a_class_have_no_label(images: Path, tmp_path: Path) -> None:
    rows = rows_of(images)
    some = write(tmp_path / "t.csv", ("path", "label"), [(rows[0][0], ""), rows[-1]])
    source = opened(some, images)
    assert (list(source.labels), list(source.class_names)) == ([-1, 0], ["dog"])
    assert source.notes == ["1 images of the table have no label"]  # type: ignore[attr-defined]
    none = write(tmp_path / "n.csv", ("path",), [row[:1] for row in rows])
    assert list(opened(none, images).class_names) == []


@pytest.mark.parametrize(
    ("header", "rows", "fields", "error", "message"),
    [
        (("a", "b"), [("x.jpg", "1")], {}, UsageError, r"column of the paths[\s\S]*path_column"),
        (("path", "image"), [("x", "y")], {}, UsageError, r"column of the paths[\s\S]*path, image"),
        (("path", "label", "class"), [("x",) * 3], {}, UsageError, "column of the labels"),
        (("path", "y"), [("x", "1")], {"label_column": "Y"}, UsageError, "no column 'Y'"),
        (("path", "path"), [("x", "1")], {"path_column": "path"}, UsageError, "several columns"),
        (("path", "label"), [], {}, DataError, "the table has no images"),
        (("path", "label"), [("x\u2028.jpg", "a")], {}, DataError, r"x\\u2028.jpg \(line"),
        (("path", "label"), [("x.jpg",)], {}, DataError, r"line 2[\s\S]*2 values[\s\S]*1 values"),
        (("path", "label"), [("", "a")], {}, DataError, "has no path"),
        (("path", "label"), [("../x.jpg", "a")], {}, DataError, "leads out of the root"),
        (("path", "label"), [("/x.jpg", "a")], {}, DataError, "not below its root"),
        (
            ("path", "label"),
            [(f"{n}.jpg", "a") for n in range(9)],
            {},
            DataError,
            r"do not exist[\s\S]*0.jpg \(line 2\), [\s\S]*9 in all[\s\S]*data.root",
        ),
        (("path", "split"), [("x", "a"), ("y", "b")], {}, DataError, r"split 'train'[\s\S]*of 'a'"),
    ],
)
def test_what_cannot_be_meant_is_named(
    images: Path,
    tmp_path: Path,
    header: Row,
    rows: list[Row],
    fields: dict[str, str],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        opened(write(tmp_path / "t.csv", header, rows), images, **fields)


def test_an_image_that_is_listed_twice(images: Path, tmp_path: Path) -> None:
    (first, *_) = rows_of(images)
    table = write(tmp_path / "t.csv", ("path", "label"), [first, (f"./{first[0]}", first[1])])
    with pytest.raises(DataError, match=r"lists images twice[\s\S]*line 3"):
        opened(table, images)


def test_a_table_in_another_encoding(images: Path, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes("path,label\ncafé.jpg,a\n".encode("latin-1"))
    with pytest.raises(DataError, match="UTF-8"):
        opened(tmp_path / "t.csv", images)


def test_columns_are_of_tables_alone(images: Path) -> None:
    with pytest.raises(UsageError, match=r"label_column can only be set for .*\.csv"):
        DataConfig.parse({"name": str(images), "label_column": "label"}, "data")


def test_values_of_parquet_that_are_no_text(images: Path, tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    paths = [path for path, _ in rows_of(images)][:4]
    categories = arrow.array(["b", None, "a", "b"]).dictionary_encode()
    table = write_parquet(tmp_path / "t.parquet", arrow.table({"path": paths, "label": categories}))
    assert opened(table, images).labels.tolist() == [1, -1, 0, 1]
    numbers = arrow.array([10, None, 2, 10], arrow.uint8())
    write_parquet(table, arrow.table({"path": paths, "label": numbers}))
    source = opened(table, images)
    assert (source.labels.tolist(), list(source.class_names)) == ([1, -1, 0, 1], ["2", "10"])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0, 2.0], r"column 'label'[\s\S]*type double[\s\S]*label_column"),
        ([[1.0], [2.0, 3.0]], "type double"),
        ([b"a", b"b"], "type binary"),
    ],
)
def test_columns_of_parquet_that_are_no_classes(
    images: Path, tmp_path: Path, values: list[Any], message: str
) -> None:
    arrow = pytest.importorskip("pyarrow")
    paths = [path for path, _ in rows_of(images)][:2]
    columns = arrow.table({"path": paths, "label": values})
    with pytest.raises(DataError, match=message):
        opened(write_parquet(tmp_path / "t.parquet", columns), images)


def test_columns_that_may_have_the_classes_are_named(images: Path, tmp_path: Path) -> None:
    """Without a label column, a table is unlabeled; that is never silent if it has more columns."""
    rows, header = (
        [(path, label, "x") for path, label in rows_of(images)],
        ("file", "kind", "camera"),
    )
    lines = [json.dumps(dict(zip(header, row, strict=True))) for row in rows]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    (tmp_path / "p.jsonl").write_text("\n".join(json.dumps({"file": row[0]}) for row in rows))
    for ending in (".csv", ".jsonl", ".parquet"):
        table = tmp_path / f"t{ending}"
        if not table.exists():
            write(table, header, rows)
        (note,) = notes_of(opened(table, images))
        assert "no column label or class" in note
        assert "from kind, camera: --set data.label_column=NAME" in note
        alone = tmp_path / f"p{ending}"
        if not alone.exists():
            write(alone, ("file",), [row[:1] for row in rows])
        assert notes_of(opened(alone, images)) == []


def test_images_inside_of_parquet_are_read_by_another_library(images: Path, tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    content = [{"bytes": b"1", "path": "a.jpg"}]
    for column in (arrow.array(content), arrow.array([b"1"])):
        path = write_parquet(tmp_path / "t.parquet", arrow.table({"image": column}))
        with pytest.raises(DataError, match=r"neither texts[\s\S]*load_dataset\('parquet'"):
            opened(path, images)


def test_missing_images_of_parquet_are_named_by_row(images: Path, tmp_path: Path) -> None:
    table = write(tmp_path / "t.parquet", ("path",), [(rows_of(images)[0][0],), ("no.jpg",)])
    with pytest.raises(DataError, match=r"1 images of the table do not exist[\s\S]*\(row 2\)"):
        opened(table, images)


def test_a_file_that_is_no_parquet(images: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "t.parquet").write_bytes(b"PAR1 nothing of it PAR1")
    with pytest.raises(DataError, match=r"cannot be read[\s\S]*a parquet file"):
        opened(tmp_path / "t.parquet", images)


def test_texts_of_parquet_that_are_no_utf_8(images: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    table = write(tmp_path / "t.parquet", ("path",), [("abcdefgh.jpg",)])
    table.write_bytes(table.read_bytes().replace(b"abcdefgh.jpg", b"\xffbcdefgh.jpg"))
    with pytest.raises(DataError, match=r"cannot be read[\s\S]*utf-?8"):
        opened(table, images)


def test_parquet_without_pyarrow(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "t.parquet").touch()
    with pytest.raises(UsageError, match=r"pyarrow[\s\S]*logitcache\[parquet\]"):
        opened(tmp_path / "t.parquet", images)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"path": 1.5}'], r"'path' is neither[\s\S]*line 1[\s\S]*type float"),
        (['{"path": "x", "label": [["a"]]}'], r"'label' is neither[\s\S]*line 1[\s\S]*type list"),
        (['{"path": "x", "label": true}'], r"type bool"),
        (['{"path": "x"}', "[1]"], r"line 2[\s\S]*JSON of type list"),
        (['{"path": "x"}', "", "{"], r"line 3[\s\S]*one JSON object per line"),
        (["[" * 100_000], "one JSON object per line"),
        (['{"path": "x"}', '{"label": "a"}'], r"no path[\s\S]*line 2"),
        (['{"y": "x"}'], r"column of the paths[\s\S]*path_column"),
        ([], "has no images"),
    ],
)
def test_lines_that_are_no_rows(tmp_path: Path, lines: list[str], message: str) -> None:
    (tmp_path / "x").touch()
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    with pytest.raises(LogitcacheError, match=message):
        open_source(str(tmp_path / "t.jsonl"))


def test_lines_may_lack_a_class(images: Path, tmp_path: Path) -> None:
    paths = [path for path, _ in rows_of(images)][:4]
    labels: list[dict[str, Any]] = [{"class": 10}, {}, {"class": None}, {"class": 9}]
    lines = [json.dumps({"image": path} | label) for path, label in zip(paths, labels, strict=True)]
    (tmp_path / "t.jsonl").write_text("\n\n".join(lines))
    source = opened(tmp_path / "t.jsonl", images)
    assert (source.labels.tolist(), list(source.class_names)) == ([1, -1, -1, 0], ["9", "10"])


def test_a_list_of_classes_orders_them_and_names_numbers(images: Path, tmp_path: Path) -> None:
    rows = rows_of(images)
    (tmp_path / "classes.txt").write_text("dog\n\ncaf\u00e9\nbird\ncat\n")
    listed = {"class_list": str(tmp_path / "classes.txt")}
    names = opened(write(tmp_path / "t.csv", ("path", "label"), rows), images, **listed)
    assert list(names.class_names) == ["dog", "caf\u00e9", "bird", "cat"]
    assert [names.labels[n] for n in (0, 20, 40)] == [2, 3, 0]
    numbered = [(path, {"dog": "0", "bird": "2", "cat": "3"}[label]) for path, label in rows]
    numbers = opened(write(tmp_path / "n.csv", ("path", "label"), numbered), images, **listed)
    np.testing.assert_array_equal(numbers.labels, names.labels)


@pytest.mark.parametrize(
    ("listed", "labels", "message"),
    [
        ("a\nb", ["a", "c"], r"1 labels are not in the list of classes[\s\S]*c[\s\S]*next"),
        ("a\nb", ["0", "2"], r"numbers from 0 to 1[\s\S]*2"),
        ("a\nb", ["a", "1"], "not in the list of classes"),
        ("a\nb\na", ["a", "b"], r"names twice[\s\S]*a"),
        ("\n", ["a", "b"], "is empty"),
        (None, ["a", "b"], "cannot be read"),
    ],
)
def test_a_label_that_is_in_no_list_of_classes(
    images: Path, tmp_path: Path, listed: str | None, labels: list[str], message: str
) -> None:
    if listed is not None:
        (tmp_path / "classes.txt").write_text(listed)
    rows = [(path, label) for (path, _), label in zip(rows_of(images), labels, strict=False)]
    table = write(tmp_path / "t.csv", ("path", "label"), rows)
    with pytest.raises(DataError, match=message):
        opened(table, images, class_list=str(tmp_path / "classes.txt"))
