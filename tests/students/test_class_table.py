"""Files with one vector for each class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from logitcache.errors import UsageError
from logitcache.networks.adapter import TableClassifier
from logitcache.students.build import StudentConfig, build_student, completed
from logitcache.students.class_table import read_class_table

if TYPE_CHECKING:
    from pathlib import Path

NAMES = ["dog", "cat", "red bird", "cow"]
VECTORS = np.random.default_rng(0).standard_normal((4, 16)).astype(np.float32)
NAMED = dict(zip(NAMES, VECTORS, strict=True))
MODEL: dict[str, Any] = {
    "model": "resnet10t",
    "kwargs": {"channels": [16, 16, 16, 16], "stem_width": 16},
}


@pytest.fixture
def table(tmp_path: Path) -> Path:
    save_file(NAMED, tmp_path / "table.safetensors")
    return tmp_path / "table.safetensors"


def student(path: Path, names: list[str] | None, classes: int) -> Any:
    settings = {**MODEL, "surgery": {"adapter": {"table": str(path), "scale": 3}}}
    config = StudentConfig.parse(settings, "student")
    return completed(build_student(config, classes), config, names)


def test_all_formats_have_the_same_vectors(table: Path, tmp_path: Path) -> None:
    savez: Any = np.savez
    savez(tmp_path / "t.npz", **NAMED)
    np.save(tmp_path / "t.npy", VECTORS.astype(np.float64))
    archive, plain, named = (
        read_class_table(path) for path in (tmp_path / "t.npz", tmp_path / "t.npy", table)
    )
    assert plain.names is None
    for found in (archive, named):
        assert found.names is not None
        order = [found.names.index(name) for name in NAMES]
        assert torch.equal(found.vectors[order], plain.vectors)


def test_rows_are_those_of_the_classes_of_the_student_by_name(table: Path) -> None:
    network = student(table, ["cow", "dog", "cat"], 3)
    classifier = network.get_classifier().classifier
    assert isinstance(classifier, TableClassifier)
    assert torch.equal(classifier.weight, torch.from_numpy(VECTORS[[3, 0, 1]]))
    learned = {name for name, p in network.named_parameters() if p.requires_grad}
    assert learned == {
        f"fc.adapter.{name}" for name in ("linear1.weight", "linear2.weight", "share")
    }


def test_a_table_without_names_needs_as_many_rows_as_classes(tmp_path: Path) -> None:
    np.save(tmp_path / "t.npy", VECTORS)
    assert student(tmp_path / "t.npy", ["a", "b", "c", "d"], 4).fc.classifier.out_features == 4
    with pytest.raises(UsageError, match="another number of rows than there are classes"):
        student(tmp_path / "t.npy", ["a", "b", "c"], 3)


def test_tables_that_do_not_fit_are_refused(table: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"lacks 1 of the 2 classes[\s\S]*horse"):
        student(table, ["cow", "horse"], 2)
    with pytest.raises(UsageError, match="another number of rows"):
        student(table, None, 3)
    np.save(tmp_path / "short.npy", VECTORS[:, :5])
    with pytest.raises(UsageError, match=r"another length[\s\S]*16 numbers[\s\S]*5 numbers"):
        student(tmp_path / "short.npy", None, 4)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.npz", b"no archive"),
        ("t.npy", b""),
        ("t.safetensors", b"{}"),
        ("t.txt", b"dog 1 2 3"),
        ("absent.npz", None),
    ],
)
def test_other_files_are_refused(name: str, content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match="this is not a class table"):
        read_class_table(tmp_path / name)


@pytest.mark.parametrize(
    "named",
    [
        {"a": np.ones(3), "b": np.ones(4)},
        {"a": np.ones((2, 2))},
        {"a": np.full(3, np.nan)},
        {"a": np.ones(3, int)},
    ],
)
def test_arrays_that_are_no_vectors_are_refused(named: dict[str, Any], tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", **named)
    with pytest.raises(UsageError, match="this is not a class table"):
        read_class_table(tmp_path / "t.npz")
