"""Students with branches: joint labels in several views, resumed, averaged, exported without."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import timm
import torch

from logitcache.cache.read.reader import open_cache
from logitcache.data.readers import open_source
from logitcache.errors import Interrupted, UsageError
from logitcache.networks.build import NetworkConfig, build_network, input_spec
from logitcache.precompute.build import build_cache
from logitcache.precompute.config import PrecomputeConfig
from logitcache.training.config import TrainConfig
from logitcache.training.evaluation.evaluator import Evaluator
from logitcache.training.loop import train_student
from logitcache.training.optimization.gradient import BatchGradient
from tests.processes import run_ranks
from tests.training.test_loop import assert_equal_runs, stop_after, weights

if TYPE_CHECKING:
    from pathlib import Path

RESNET: dict[str, Any] = {
    "model": "resnet10t",
    "kwargs": {"channels": [8, 8, 16, 16], "stem_width": 8},
    "size": 32,
}
CONVNEXT: dict[str, Any] = {
    "model": "convnext_atto",
    "kwargs": {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]},
    "size": 32,
}
"""A network without batch norm, whose processes compute what one computes."""
SHOW = ["base", "rot90(1)", "rot90(2)", "rot90(3)"]


def config(out: Path, images: Path, **fields: Any) -> TrainConfig:
    stage = fields.pop("stage", "layer1")
    student = {**fields.pop("student", RESNET)}
    values = {
        "out": str(out),
        "data": str(images),
        "val": str(images),
        "student": {**student, "surgery": {"branches": {"at": [stage], "classes": "x4"}}},
        "show": SHOW,
        "objectives": [
            {"label": {"views": ["base"]}},
            {"label": {"head": f"branches.{stage}", "joint": True}},
        ],
        "steps": 6,
        "batch_size": 16,
        "crop_pct": 1.0,
        "threads": 1,
        "ema": 0.5,
        **fields,
    }
    return TrainConfig.parse(values, "train")


def test_a_run_with_branches_resumes_and_exports_a_network_without_them(
    images: Path, tmp_path: Path
) -> None:
    """Accuracy, parameters and weights are those of the exported network."""
    result = train_student(config(tmp_path / "whole", images))
    with pytest.raises(Interrupted):
        train_student(config(tmp_path / "parts", images), should_stop=stop_after(3))
    train_student(config(tmp_path / "parts", images), resume=True)
    assert_equal_runs(tmp_path / "parts", tmp_path / "whole")
    plain = timm.create_model(RESNET["model"], num_classes=3, **RESNET["kwargs"])
    exported = weights(tmp_path / "whole")
    assert {name: value.shape for name, value in exported.items()} == {
        name: value.shape for name, value in plain.state_dict().items()
    }
    assert result.parameters == sum(p.numel() for p in plain.parameters())
    folder = f"local-dir:{tmp_path / 'whole' / 'export'}"
    network = build_network(NetworkConfig(model=folder))
    spec = input_spec(network)
    evaluator = Evaluator(
        open_source(str(images)), spec, batch_size=16, device=torch.device("cpu"), threads=1
    )
    assert evaluator(network) == result.evaluation
    evaluator.close()


def test_a_teacher_with_branches_is_cached_and_imitated(images: Path, tmp_path: Path) -> None:
    teacher = config(tmp_path / "teacher", images).model_dump(mode="json")
    teacher["student"]["surgery"]["branches"]["export"] = True
    train_student(TrainConfig.parse(teacher, "train"))
    values = {
        "cache": str(tmp_path / "cache"),
        "data": str(images),
        "views": {"count": 1, "derive": SHOW[1:]},
        "unit_rows": 16,
        "teachers": {
            "t": {
                "model": f"local-dir:{tmp_path / 'teacher' / 'export'}",
                "features": {"branches.layer1": {}},
            }
        },
    }
    build_cache(PrecomputeConfig.parse(values, ""))
    cache = open_cache(tmp_path / "cache")
    assert cache.tap("t/branches.layer1").encoding.shape == (12,)
    own = {"head": "branches.layer1", "logits": {"t": "branches.layer1"}, "temperature": 3}
    student = config(
        tmp_path / "student",
        images,
        cache=str(tmp_path / "cache"),
        objectives=[{"label": {"views": ["base"]}}, {"soft": {"temperature": 3}}, {"soft": own}],
    )
    assert train_student(student).steps == 6


def run(rank: int, values: dict[str, Any]) -> None:
    del rank
    train_student(TrainConfig.parse(values, "train"))


def test_two_processes_train_what_one_trains(images: Path, tmp_path: Path) -> None:
    """Four views, a branch with joint labels, and the image as a target of the first stage."""
    pixels = {"against": "pixels", "student": "stages.0", "projector": "pixel-shuffle"}
    objectives = [
        {"label": {"views": ["base"]}},
        {"label": {"head": "branches.stages.1", "joint": True}},
        {"match": pixels},
    ]
    fields = {"student": CONVNEXT, "stage": "stages.1", "objectives": objectives, "val": None}
    train_student(config(tmp_path / "one", images, **fields))
    values = config(tmp_path / "two", images, **fields).model_dump(mode="json")
    assert run_ranks(2, run, values) == [None, None]
    ours, theirs = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-4) for name in ours)


def test_a_branch_without_an_objective_is_refused(images: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no objective uses a branch"):
        train_student(config(tmp_path, images, objectives=["label"]))


def test_a_network_of_its_own_branches_is_trained_further_without_them(
    images: Path, tmp_path: Path
) -> None:
    """Branches that no term uses stay as they were, and are exported again."""
    values = config(tmp_path / "first", images, steps=2, ema=None).model_dump(mode="json")
    values["student"]["surgery"]["branches"]["export"] = True
    train_student(TrainConfig.parse(values, "train"))
    further = {"model": f"local-dir:{tmp_path / 'first' / 'export'}", "size": 32}
    values |= {"student": further, "objectives": ["label"], "show": ["base"]}
    result = train_student(TrainConfig.parse({**values, "out": str(tmp_path / "next")}, "train"))
    assert any("branches.layer1" in note for note in result.notes)
    before, after = weights(tmp_path / "first"), weights(tmp_path / "next")
    changed = {name.partition(".")[0] for name in before if not before[name].equal(after[name])}
    assert {"conv1", "layer1", "layer4", "fc"} <= changed
    assert "branches" not in changed
    values["objectives"] = ["label", {"label": {"head": "branches.layer1", "joint": True}}]
    values |= {"show": SHOW, "out": str(tmp_path / "both")}
    train_student(TrainConfig.parse(values, "train"))
    after = weights(tmp_path / "both")
    assert any(not before[n].equal(after[n]) for n in before if n.startswith("branches."))


def test_outputs_that_are_no_pairs_with_the_views_are_refused_before_the_first_step(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BatchGradient, "__call__", lambda *_: pytest.fail("a step was taken"))
    with pytest.raises(UsageError, match="an output for each class and view"):
        train_student(config(tmp_path, images, show=SHOW[:2]))
