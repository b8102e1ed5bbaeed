"""Several classes per image: one set of images in every form, and values that are refused."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from logitcache.data.classes import RelabeledSource
from logitcache.data.identity import listing_digest
from logitcache.data.join import ImageJoin
from logitcache.data.readers import DataConfig, open_source
from logitcache.data.readers.torch_dataset import DatasetSource
from logitcache.data.source import notes_of
from logitcache.data.subset import SubsetSource
from logitcache.errors import DataError, DataMismatch, LogitcacheError, UsageError
from logitcache.label_sets import label_sets_of
from tests.data.forms import write_tar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from logitcache.data.source import Source

CLASSES = ("cat", "dog", "sofa")
SETS: tuple[tuple[str, ...] | None, ...] = (
    ("sofa", "cat"),
    (),
    None,
    ("dog",),
    ("cat", "dog", "sofa"),
    ("cat",),
)
NAMES = tuple(f"{number}.png" for number in range(len(SETS)))


def image(number: int) -> Image.Image:
    return Image.fromarray(np.full((4, 5, 3), 30 * number, dtype=np.uint8))


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    image(number).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(NAMES):
        (tmp_path / name).write_bytes(png(number))
    return tmp_path


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",").writerows(
            [header, *rows]
        )
    return str(path)


def flags(one: Sequence[str] | None, present: Any = 1, absent: Any = 0) -> list[Any]:
    return [("" if one is None else present if name in one else absent) for name in CLASSES]


def separated(folder: Path) -> DataConfig:
    texts = ["" if one is None else "|".join(one) or "|" for one in SETS]
    rows = list(zip(NAMES, texts, strict=True))
    name = write_csv(folder / "t.csv", ("path", "label"), rows)
    return DataConfig(name=name, label_separator="|")


def columns_of_flags(folder: Path) -> DataConfig:
    rows = [(name, *flags(one)) for name, one in zip(NAMES, SETS, strict=True)]
    name = write_csv(folder / "t.tsv", ("path", *CLASSES), rows)
    return DataConfig(name=name, label_column=list(CLASSES))


def json_lines(folder: Path) -> DataConfig:
    rows = [
        {"path": name, "label": one if one is None else list(one)}
        for name, one in zip(NAMES, SETS, strict=True)
    ]
    (folder / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return DataConfig(name=str(folder / "t.jsonl"))


def parquet_lists(folder: Path) -> DataConfig:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    labels = arrow.array([one if one is None else list(one) for one in SETS])
    parquet.write_table(arrow.table({"path": list(NAMES), "label": labels}), folder / "t.parquet")
    return DataConfig(name=str(folder / "t.parquet"))


def parquet_flags(folder: Path) -> DataConfig:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns: dict[str, list[Any]] = {"path": list(NAMES)}
    for name in CLASSES:
        columns[name] = [None if one is None else name in one for one in SETS]
    parquet.write_table(arrow.table(columns), folder / "t.parquet")
    return DataConfig(name=str(folder / "t.parquet"), label_column=list(CLASSES))


def shards(folder: Path) -> DataConfig:
    members: list[tuple[str, bytes]] = []
    for number, (name, one) in enumerate(zip(NAMES, SETS, strict=True)):
        label = json.dumps({"tags": one}).encode()
        members += [(name, png(number)), (f"{number}.json", label)]
    (folder / "shards").mkdir()
    write_tar(folder / "shards" / "x.tar", members)
    return DataConfig(name=f"wds/{folder / 'shards'}", label_column="tags")


def shards_of_text(folder: Path) -> DataConfig:
    members: list[tuple[str, bytes]] = []
    for number, (name, one) in enumerate(zip(NAMES, SETS, strict=True)):
        text = "" if one is None else ", ".join(one) or ","
        members += [(name, png(number)), (f"{number}.txt", text.encode())]
    (folder / "shards").mkdir()
    write_tar(folder / "shards" / "x.tar", members)
    return DataConfig(name=f"wds/{folder / 'shards'}", label_column="txt", label_separator=",")


def saved_dataset(folder: Path) -> DataConfig:
    datasets = pytest.importorskip("datasets")
    labels = [one if one is None else [CLASSES.index(name) for name in one] for one in SETS]
    features = datasets.Features(
        image=datasets.Image(), label=datasets.List(datasets.ClassLabel(names=list(CLASSES)))
    )
    paths = [str(folder / name) for name in NAMES]
    datasets.disable_progress_bars()
    saved = datasets.Dataset.from_dict({"image": paths, "label": labels}, features)
    datasets.DatasetDict(train=saved).save_to_disk(folder / "saved")
    return DataConfig(name=str(folder / "saved"))


FORMS: dict[str, Callable[[Path], DataConfig]] = {
    form.__name__: form
    for form in (
        separated,
        columns_of_flags,
        json_lines,
        parquet_lists,
        parquet_flags,
        shards,
        shards_of_text,
        saved_dataset,
    )
}


def named_sets(source: Source) -> dict[str, set[str] | None]:
    """Return the names of the classes of every image by key."""
    sets = label_sets_of(source)
    assert sets is not None
    found = {}
    for index, key in enumerate(source.keys):
        labels = sets[index]
        found[key] = None if labels is None else {source.class_names[n] for n in labels}
    return found


def expected_sets() -> dict[str, set[str] | None]:
    return {n: None if one is None else set(one) for n, one in zip(NAMES, SETS, strict=True)}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_has_the_same_sets(form: str, folder: Path) -> None:
    source = open_source(FORMS[form](folder))
    assert list(source.class_names) == list(CLASSES)
    assert named_sets(source) == expected_sets()
    assert (np.asarray(source.labels) == -1).all()
    (unlabeled,) = [note for note in notes_of(source) if "have no label" in note]
    assert unlabeled.startswith("1 images")


def test_columns_of_names_are_the_classes_of_a_row(folder: Path) -> None:
    rows = [(NAMES[0], "cat", "dog"), (NAMES[1], "", "dog"), (NAMES[2], "", "")]
    name = write_csv(folder / "t.csv", ("path", "first", "second"), rows)
    source = open_source(DataConfig(name=name, label_column=["first", "second"]))
    assert named_sets(source) == {
        NAMES[0]: {"cat", "dog"},
        NAMES[1]: {"dog"},
        NAMES[2]: None,
    }


def test_a_class_of_a_column_without_images_is_a_class(folder: Path) -> None:
    rows = [(NAMES[0], 1, 0), (NAMES[1], 1, 0)]
    name = write_csv(folder / "t.csv", ("path", "cat", "dog"), rows)
    source = open_source(DataConfig(name=name, label_column=["cat", "dog"]))
    assert list(source.class_names) == ["cat", "dog"]
    assert notes_of(source)[0].startswith("the 2 label columns have 0 and 1 alone")


def test_a_list_of_classes_names_the_numbers_of_sets(folder: Path) -> None:
    (folder / "classes.txt").write_text("sofa\ndog\ncat\n")
    config = separated(folder)
    source = open_source(config.model_copy(update={"class_list": str(folder / "classes.txt")}))
    assert list(source.class_names) == ["sofa", "dog", "cat"]
    assert named_sets(source) == expected_sets()


@pytest.mark.parametrize(
    ("header", "rows", "settings", "message"),
    [
        (
            ("path", "a", "b"),
            [(1, 0)],
            {"label_column": ["a", "c"]},
            r"no column 'c'[\s\S]*path, a, b",
        ),
        (
            ("path", "a", "b"),
            [(1, "")],
            {"label_column": ["a", "b"]},
            r"some of its classes only[\s\S]*line 2[\s\S]*nothing in b",
        ),
        (
            ("path", "a", "b"),
            [(1, 0), (1, -1)],
            {"label_column": ["a", "b"]},
            r"not all 0 or 1[\s\S]*line 3[\s\S]*'-1' in 'b'",
        ),
        (
            ("path", "label"),
            [("x;y",)],
            {"label_separator": ";", "class_list": "classes.txt"},
            r"1 labels are not in the list[\s\S]*y",
        ),
    ],
)
def test_columns_that_are_no_sets(
    folder: Path,
    header: Sequence[str],
    rows: list[tuple[Any, ...]],
    settings: dict[str, Any],
    message: str,
) -> None:
    (folder / "classes.txt").write_text("x\n")
    if "class_list" in settings:
        settings = settings | {"class_list": str(folder / "classes.txt")}
    numbered = [(NAMES[number], *row) for number, row in enumerate(rows)]
    name = write_csv(folder / "t.csv", header, numbered)
    with pytest.raises(LogitcacheError, match=message):
        open_source(DataConfig(name=name, **settings))


def test_a_list_next_to_another_value_is_refused(folder: Path) -> None:
    lines = [{"path": NAMES[0], "label": ["a"]}, {"path": NAMES[1], "label": "b"}]
    (folder / "t.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(DataError, match=r"lists and other values[\s\S]*line 2[\s\S]*str"):
        open_source(str(folder / "t.jsonl"))


def test_a_line_with_a_field_twice_is_refused(folder: Path) -> None:
    lines = [f'{{"path": "{NAMES[0]}", "label": "a"}}', '{"path": "x", "label": "a", "label": "b"}']
    (folder / "t.jsonl").write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"line 2[\s\S]*'label' is given 2 times"):
        open_source(str(folder / "t.jsonl"))


def test_a_separator_is_refused_where_no_labels_are_read(folder: Path) -> None:
    with pytest.raises(UsageError, match="label_separator can only be set for"):
        DataConfig(name=str(folder), label_separator=";")


class Items:
    """A map-style data set."""

    def __init__(self, labels: list[Any], **attributes: Any) -> None:
        self._labels = labels
        self.__dict__.update(attributes)

    def __len__(self) -> int:
        return len(SETS)

    def __getitem__(self, index: int) -> Any:
        return image(index), self._labels[index] if self._labels else None


NUMBERS = [None if one is None else [CLASSES.index(name) for name in one] for one in SETS]
KNOWN = [one or [] for one in NUMBERS]
MATRIX = np.array([flags(one or ()) for one in SETS])


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (NUMBERS, NUMBERS),
        ([one if one is None else set(one) for one in NUMBERS], NUMBERS),
        (MATRIX, KNOWN),
        (MATRIX.astype(bool), KNOWN),
        (torch.from_numpy(MATRIX).float(), KNOWN),
        ([None if n is None else MATRIX[i] for i, n in enumerate(NUMBERS)], NUMBERS),
        ([torch.from_numpy(row) for row in MATRIX], KNOWN),
    ],
)
def test_python_data_sets_have_sets(labels: Any, expected: list[list[int] | None]) -> None:
    given = DatasetSource(Items([]), labels=labels, class_names=CLASSES)
    listed = list(labels) if not isinstance(labels, list) else labels
    by_item = DatasetSource(Items(listed, classes=CLASSES))
    by_attribute = DatasetSource(Items([], targets=labels, classes=CLASSES))
    for source in (given, by_item, by_attribute):
        assert source.label_sets is not None
        assert [source.label_sets[n] for n in range(len(SETS))] == [
            None if one is None else sorted(one) for one in expected
        ]
        assert source.class_names == list(CLASSES)


def test_classes_without_names_are_as_many_as_columns() -> None:
    matrix = np.zeros((len(SETS), 4), dtype=int)
    assert DatasetSource(Items([]), labels=matrix).class_names == ["0", "1", "2", "3"]


def test_sets_of_another_number_of_images_are_refused() -> None:
    with pytest.raises(LogitcacheError, match=r"each of 6 images[\s\S]*2 labels"):
        DatasetSource(Items([]), labels=[[0], [1]])


def test_a_subset_and_another_order_of_classes_keep_the_sets(folder: Path) -> None:
    source = open_source(json_lines(folder))
    some = SubsetSource(source, [4, 0, 2])
    relabeled = RelabeledSource(some, ["sofa", "bird", "dog", "cat"], "the cache")
    every = expected_sets()
    assert named_sets(relabeled) == {key: every[key] for key in (NAMES[4], NAMES[0], NAMES[2])}
    with pytest.raises(DataMismatch, match=r"1 classes of these images[\s\S]*sofa"):
        RelabeledSource(some, ["dog", "cat"], "the cache")


def test_other_sets_of_an_image_are_found_by_name(folder: Path) -> None:
    source = open_source(json_lines(folder))
    changed = [None if one is None else list(one) for one in SETS]
    changed[0], changed[1], changed[3] = ["sofa"], None, ["dog", "cat"]
    rows = [{"path": n, "label": one} for n, one in zip(NAMES, changed, strict=True)]
    (folder / "u.jsonl").write_text("\n".join(map(json.dumps, rows)))
    other = open_source(str(folder / "u.jsonl"))
    joined = ImageJoin(other, source.class_names).find(
        np.array(source.keys, dtype=object),
        labels=source.labels,
        label_sets=label_sets_of(source),
    )
    assert np.flatnonzero(joined.relabeled).tolist() == [0, 3]
    rows_of = np.arange(len(NAMES))
    assert listing_digest(source, rows_of) != listing_digest(other, rows_of)


def test_shards_are_read_without_extracting_them(folder: Path) -> None:
    config = shards(folder)
    with tarfile.open(folder / "shards" / "x.tar") as tar:
        assert len(tar.getnames()) == 2 * len(SETS)
    assert open_source(config).read(3) == png(3)
