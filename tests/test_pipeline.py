from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from logitcache.cli.tables import print_pipeline
from logitcache.errors import UsageError
from logitcache.pipeline.config import PipelineConfig
from logitcache.pipeline.run import Pipeline, StageResult
from logitcache.pipeline.settings import override, read_yaml

if TYPE_CHECKING:
    from pathlib import Path

    from logitcache.pipeline.run import Stage

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


@pytest.mark.parametrize("content", ["", '{"digest": "', "[]", "{}", '{"digest": 1, "result": 2}'])
def test_a_stage_with_a_damaged_marker_is_not_done(
    tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    ran(tmp_path, {"a": 1.0})
    (tmp_path / "weights.done.json").write_text(content)
    with pytest.raises(UsageError, match="has not run yet"):
        ran(tmp_path, {"a": 1.0}, only=["student"])
    assert [stage.name for stage in ran(tmp_path, {"a": 1.0})] == ["weights"]
    assert f"{tmp_path / 'weights.done.json'} is damaged" in caplog.text
    assert ran(tmp_path, {"a": 1.0}) == []


@pytest.mark.parametrize("text", ["{img_size:32}", "[{soft: {teachers: {a:1}}}]"])
def test_a_colon_without_a_space_is_no_pair(text: str, tmp_path: Path) -> None:
    """YAML reads one name without a value, which timm would take as not given."""
    with pytest.raises(UsageError, match="colon without a space"):
        override({}, [f"student.kwargs={text}"])
    (tmp_path / "p.yaml").write_text(f"student: {text}\n")
    with pytest.raises(UsageError, match="colon without a space") as caught:
        read_yaml(tmp_path / "p.yaml")
    assert caught.value.where == tmp_path / "p.yaml"
    assert override({}, ["data=torch/cifar10:here"]) == {"data": "torch/cifar10:here"}


def test_a_field_below_a_value_says_what_to_set() -> None:
    with pytest.raises(UsageError) as caught:
        override({"data": "digits"}, ["data.name=photos"])
    assert caught.value.got == "'digits'"
    assert caught.value.hint == "set that as a whole: --set data=VALUE"


def test_a_fitted_mixture_has_its_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fitted = {"teachers": {"a": 0.25, "b": 0.75}, "single": {"a": 0.5, "b": 0.6}, "accuracy": 0.7}
    stages = pipeline(tmp_path).run(
        dict.fromkeys(("train", "precompute", "fit_weights"), lambda stage: fitted)
        | {"precompute": lambda stage: {"sizes": {}}},
        only=["weights"],
    )
    print_pipeline([stages])
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("weights", "0.250", "0.750", "50.0 %", "70.0 %"))
    other = [
        StageResult(s.stage, {**s.values, "teachers": {"a": 0.5, "b": 0.5}}, False) for s in stages
    ]
    print_pipeline([stages, other])
    assert "0.375 ± 0.177" in capsys.readouterr().out
