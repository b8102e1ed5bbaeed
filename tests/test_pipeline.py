from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from logitcache.errors import UsageError
from logitcache.pipeline import Pipeline, PipelineConfig

if TYPE_CHECKING:
    from pathlib import Path

    from logitcache.pipeline import Stage

WEIGHTS = "stage:weights/teachers"
STAGES: list[dict[str, Any]] = [
    {"name": "cache", "precompute": {"teachers": {}}},
    {"name": "weights", "fit_weights": {"cache": "stage:cache"}},
    {
        "name": "student",
        "train": {"objectives": [{"soft": {"teachers": "stage:weights/teachers"}}]},
    },
]


def pipeline(out: Path, stages: list[dict[str, Any]] = STAGES) -> Pipeline:
    values = {"name": "p", "out": str(out), "data": "digits", "stages": stages}
    return Pipeline(PipelineConfig.parse(values, "p.yaml"))


def ran(out: Path, weights: dict[str, float], only: list[str] | None = None) -> list[Stage]:
    """Run the pipeline with runners that only say what they were asked; return what ran."""
    found: list[Stage] = []

    def run(stage: Stage) -> dict[str, Any]:
        found.append(stage)
        return {"teachers": weights} if stage.kind == "fit_weights" else {}

    runners = dict.fromkeys(("train", "precompute", "fit_weights"), run)
    pipeline(out).run(runners, only or [])
    return found


def test_a_stage_uses_the_result_of_an_earlier_one(tmp_path: Path) -> None:
    stages = {stage.name: stage.values for stage in ran(tmp_path, {"a": 0.25, "b": 0.75})}
    assert stages["weights"] == {
        "cache": str(tmp_path / "cache"),
        "out": str(tmp_path / "weights" / "weights.yaml"),
    }
    assert stages["student"]["objectives"] == [{"soft": {"teachers": {"a": 0.25, "b": 0.75}}}]
    assert ran(tmp_path, {}) == []  # all is done


def test_another_result_is_another_stage(tmp_path: Path) -> None:
    ran(tmp_path, {"a": 1.0})
    (tmp_path / "weights.done.json").unlink()
    assert [stage.name for stage in ran(tmp_path, {"a": 0.5})] == ["weights", "student"]


def test_a_result_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--only weights"):
        ran(tmp_path, {}, only=["student"])
    misspelt = [*STAGES[:2], {"name": "s", "train": {"a": "stage:weights/teacher"}}]
    ran(tmp_path, {"a": 1.0})
    with pytest.raises(UsageError, match="did you mean 'teachers'"):
        pipeline(tmp_path, misspelt).run({"train": lambda _: {}}, ["s"])
    with pytest.raises(UsageError, match="no earlier stage 'weight'"):
        pipeline(tmp_path, [{"name": "s", "train": {"a": "stage:weight/teachers"}}])
