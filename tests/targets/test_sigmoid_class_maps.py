"""Class maps of teachers with ``head: sigmoid`` and of label sets; mixed views and scripts, too."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch

import logitcache
from logitcache import DataConfig, open_cache
from logitcache.batch import SigmoidLogits
from logitcache.cli.class_shares import print_class_shares
from logitcache.errors import UsageError
from logitcache.precompute.build import build_cache
from logitcache.precompute.config import PrecomputeConfig
from logitcache.report.class_shares import class_shares
from logitcache.training.config import TrainConfig
from logitcache.training.loop import train_student
from tests.conftest import write_teacher
from tests.label_set_images import TAGS, sets_of, write_listing

if TYPE_CHECKING:
    from pathlib import Path

FEWER = {"*": {"pet": ["cat"], "building": ["house"]}}
STUDENT = {"model": "resnet10t", "kwargs": {"channels": [8] * 4, "stem_width": 8}, "size": 16}
MERGED = {"*": {"pet": ["cat", "dog"], "building": ["house"]}}


@pytest.fixture(scope="module")
def values(images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the configuration of a cache of log-odds and of log-probabilities that is written."""
    root = tmp_path_factory.mktemp("maps")
    teacher = write_teacher(root / "teacher", classes=len(TAGS), model="cnn")
    model = {"model": f"local-dir:{teacher}"}
    values = {
        "cache": str(root / "cache"),
        "data": write_listing(images, root / "t.jsonl"),
        "teachers": {
            "t": {**model, "head": "sigmoid"},
            "own": {**model, "head": "sigmoid", "class_map": "own", "class_names": list(TAGS)},
            "s": model,
        },
        "views": {"count": 1, "mixup_alpha": 0.8},
        "min_accuracy": 0,
        "unit_rows": 16,
    }
    build_cache(PrecomputeConfig.parse(values, ""))
    return values


def batches(values: dict[str, Any], class_map: Any, teachers: list[str]) -> logitcache.Loader:
    return logitcache.loader(
        open_cache(values["cache"]),
        DataConfig(**values["data"]),
        batch_size=16,
        size=8,
        teachers=teachers,
        class_map=class_map,
    )


def test_label_sets_of_mixed_views_are_mapped(values: dict[str, Any], images: Path) -> None:
    """The share of an image in the classes of the map, from its own tags and its partner's."""
    cache, sets = open_cache(values["cache"]), sets_of(images)
    keys, partners = cache.samples.keys, cache.partners(next(iter(cache.views)))

    def has(row: int) -> torch.Tensor:
        tags = sets[keys[row]]
        if tags is None:
            return torch.full((2,), torch.nan)
        return torch.tensor([float("house" in tags), float("cat" in tags or "dog" in tags)])

    seen = 0
    for _, targets in batches(values, MERGED, ["s"]):
        assert targets.label_sets is not None
        assert targets.lam is not None
        expected = [
            has(row) if share == 1 else share * has(row) + (1 - share) * has(partners[row])
            for row, share in zip(targets.rows.tolist(), targets.lam.tolist(), strict=True)
        ]
        torch.testing.assert_close(targets.label_sets, torch.stack(expected), equal_nan=True)
        seen += len(expected)
    assert seen == len(sets)


def test_classes_of_a_sigmoid_teacher_are_selected(values: dict[str, Any]) -> None:
    pairs = zip(batches(values, None, ["t"]), batches(values, FEWER, ["t"]), strict=True)
    for (_, whole), (_, mapped) in pairs:
        logits, chosen = whole.teachers["t"], mapped.teachers["t"]
        assert isinstance(logits, SigmoidLogits)
        assert isinstance(chosen, SigmoidLogits)
        columns = [TAGS.index("house"), TAGS.index("cat")]  # building, pet
        torch.testing.assert_close(chosen.logits, logits.logits[:, columns], rtol=0, atol=0)


def test_maps_that_a_sigmoid_teacher_cannot_follow_are_refused(values: dict[str, Any]) -> None:
    """Before any batch is read."""
    with pytest.raises(UsageError, match=r"cannot be merged[\s\S]*teacher 't'[\s\S]*pet with 2"):
        batches(values, MERGED, ["t"])
    with pytest.raises(UsageError, match=r"lacks classes[\s\S]*none for bird, dog"):
        batches(values, {"own": {"cat": ["cat"], "house": ["house"]}}, ["own"])


def test_a_cached_teacher_has_the_classes_of_the_map_if_they_are_independent(
    values: dict[str, Any],
) -> None:
    cache = open_cache(values["cache"])
    teacher = logitcache.CachedTeacher(cache, "t", class_map=FEWER)
    assert teacher.num_classes == 2
    assert logitcache.CachedTeacher(cache, "t").num_classes == len(TAGS)
    images, targets = next(iter(batches(values, FEWER, ["t"])))
    teacher.bind(images, targets)
    mapped = targets.teachers["t"]
    assert isinstance(mapped, SigmoidLogits)
    assert torch.equal(teacher(images), mapped.logits)
    with pytest.raises(UsageError, match=r"other classes than[\s\S]*4 classes[\s\S]*2 classes"):
        logitcache.CachedTeacher(cache, "t").bind(images, targets)
    with pytest.raises(UsageError, match=r"mapped to other classes[\s\S]*4 classes[\s\S]*2 class"):
        logitcache.CachedTeacher(cache, "s", class_map=FEWER)


def test_images_with_label_sets_are_counted_in_the_classes_of_a_map(
    values: dict[str, Any], images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = class_shares(values["cache"], FEWER)
    known = [tags for tags in sets_of(images).values() if tags is not None]
    assert found.class_names == ["building", "pet"]
    assert found.labels == [sum(tag in tags for tags in known) for tag in ("house", "cat")]
    assert found.unlabeled == sum(not {"house", "cat"} & set(tags) for tags in known) + (
        len(sets_of(images)) - len(known)
    )
    assert found.labeled + found.unlabeled == len(sets_of(images))
    masses = {teacher.teacher: teacher.outside.mass for teacher in found.teachers}
    assert masses["t"] is None, "independent probabilities have no sum"
    assert masses["s"] == pytest.approx(0.5, abs=0.2)
    print_class_shares(found)
    text = capsys.readouterr().out
    assert f"{found.labeled} labeled images, {found.unlabeled} without a label" in text
    assert "t: 2 classes outside of the map are left out; largest:" in text


@pytest.mark.parametrize(("teacher", "class_map"), [("t", FEWER), ("s", MERGED)])
def test_a_student_is_trained_and_validated_in_the_classes_of_a_map(
    values: dict[str, Any], tmp_path: Path, teacher: str, class_map: Any
) -> None:
    """Label sets of a mixed view, mapped for training and validation."""
    config = {
        "data": values["data"],
        "val": values["data"],
        "cache": values["cache"],
        "student": STUDENT,
        "out": str(tmp_path / "out"),
        "epochs": 1,
        "batch_size": 16,
        "class_map": class_map,
        "objectives": [{"soft": {"teachers": {teacher: 1.0}}}, {"label": {"weight": 0.5}}],
    }
    result = train_student(TrainConfig.parse(config, ""))
    assert result.evaluation is not None
    assert result.evaluation.mean_average_precision is not None
    names = json.loads((tmp_path / "out/export/config.json").read_text())["label_names"]
    assert names == ["building", "pet"]


def test_label_sets_in_the_cache_are_mapped_for_several_views_of_an_image(
    values: dict[str, Any], images: Path, tmp_path: Path
) -> None:
    """Images in the cache, a view and its rotation in one batch: labels and outputs of each row."""
    views = {"count": 1, "derive": ["rot90(1)"]}
    packed = {**values, "cache": str(tmp_path / "c"), "images": "packed:16", "views": views}
    build_cache(PrecomputeConfig.parse(packed, ""))
    cache, sets = open_cache(tmp_path / "c"), sets_of(images)
    shown = logitcache.loader(
        cache, teachers=["t"], class_map=FEWER, show=["base", "rot90(1)"], batch_size=16, size=8
    )
    for pixels, targets in shown:
        rows = targets.rows.tolist()
        assert targets.label_sets is not None
        assert len(pixels) == len(rows) == len(targets.label_sets)
        for row, found in zip(rows, targets.label_sets.tolist(), strict=True):
            tags = sets[cache.samples.keys[row]]
            if tags is None:
                assert all(math.isnan(value) for value in found)
            else:
                assert found == [float("house" in tags), float("cat" in tags)]
        assert targets.teachers["t"].num_classes == 2
