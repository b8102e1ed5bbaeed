"""``--class-map`` of ``train`` and ``inspect``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import yaml

from tests.training.test_loop import VIT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.conftest import Outcome

Teachers = dict[str, dict[str, str]]


@pytest.fixture
def cache(
    logitcache: Callable[..., Outcome], images: Path, teachers: Teachers, tmp_path: Path
) -> Path:
    named = [f"--teacher={name}={value['model']}" for name, value in teachers.items()]
    values = ["--data", images, "--views", 1, "--unit-rows", 16, *named]
    made = logitcache("precompute", "--cache", tmp_path / "cache", *values)
    assert made.code == 0, made.err
    return tmp_path / "cache"


@pytest.fixture
def class_map(tmp_path: Path) -> Path:
    (tmp_path / "pets.csv").write_text("cat,pet\ndog,pet\n", encoding="utf-8")
    return tmp_path / "pets.csv"


def test_inspect_shows_the_probability_of_each_class_of_the_student(
    logitcache: Callable[..., Outcome], cache: Path, class_map: Path
) -> None:
    found = logitcache("inspect", cache, "--class-map", class_map, "--json").json
    assert found["class_names"] == ["pet"]
    assert found["labels"] == [40]
    assert found["unlabeled"] == 20
    assert [t["teacher"] for t in found["teachers"]] == ["cnn", "red"]
    for teacher in found["teachers"]:
        (pet,) = teacher["classes"]
        assert pet["classes"] == 2
        assert pet["mass"] + teacher["outside"]["mass"] == pytest.approx(1.0)
        assert [one["name"] for one in teacher["largest"]] == ["bird"]
    text = logitcache("inspect", cache, "--class-map", class_map).out
    assert "40 labeled images, 20 without a label in these classes" in text
    assert "cnn: 1 classes outside of the map have" in text


def test_train_takes_maps_of_all_teachers_and_of_one(
    logitcache: Callable[..., Outcome], cache: Path, class_map: Path, images: Path, tmp_path: Path
) -> None:
    (tmp_path / "two.csv").write_text("cat,pet\ndog,pet\nbird,other\n", encoding="utf-8")
    (tmp_path / "student.yaml").write_text(yaml.safe_dump({"student": VIT, "batch_size": 16}))
    flags = ["--cache", cache, "--data", images, "--val", images, "--epochs", 1]
    flags += ["--config", tmp_path / "student.yaml", "--out", tmp_path / "run"]
    twice = logitcache("train", *flags, "--class-map", class_map, "--class-map", class_map)
    assert twice.code == 2
    assert "two class maps are given for one teacher" in twice.err
    done = logitcache("train", *flags, "--class-map", f"cnn={tmp_path / 'two.csv'}", "--json")
    assert done.code == 0, done.err
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert saved["class_map"] == {"cnn": {"other": ["bird"], "pet": ["cat", "dog"]}}


def test_a_missing_map_is_one_clear_message(
    logitcache: Callable[..., Outcome], cache: Path, tmp_path: Path
) -> None:
    failed = logitcache("inspect", cache, "--class-map", tmp_path / "absent.csv")
    assert failed.code != 0
    assert "a class map cannot be read" in failed.err
    assert "Traceback" not in failed.err
