from __future__ import annotations

import importlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import pytest

from logitcache.cli.interrupt import StopRequest
from logitcache.cli.pipeline_tables import print_pipeline
from logitcache.cli.stages import stage_runner
from logitcache.config import Config
from logitcache.errors import UsageError
from logitcache.pipeline.config import PipelineConfig
from logitcache.pipeline.run import Pipeline, StageResult
from logitcache.pipeline.settings import override, read_yaml
from logitcache.pipeline.stage_kinds import STAGE_KINDS, StageKind

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
    """Run the pipeline with a runner that only records its stages; return those that ran."""
    found: list[Stage] = []

    def run(stage: Stage) -> dict[str, Any]:
        found.append(stage)
        return {"teachers": weights} if stage.kind == "fit_weights" else {}

    pipeline(out).run(run, only or [])
    return found


def test_a_stage_uses_the_result_of_an_earlier_one(tmp_path: Path) -> None:
    stages = {stage.name: stage.values for stage in ran(tmp_path, {"a": 0.25, "b": 0.75})}
    assert stages["weights"] == {
        "cache": str(tmp_path / "cache"),
        "out": str(tmp_path / "weights" / "weights.yaml"),
    }
    assert stages["student"]["objectives"] == [{"soft": {"teachers": {"a": 0.25, "b": 0.75}}}]
    assert ran(tmp_path, {}) == []  # all is done


def test_the_output_folder_has_the_pipeline_it_is_of_without_passwords(tmp_path: Path) -> None:
    ran(tmp_path, {})
    again = PipelineConfig.parse(read_yaml(tmp_path / "pipeline.yaml"), "again")
    assert Pipeline(again).stages == pipeline(tmp_path).stages
    labels: dict[str, Any] = {"data": "s3://me:secret@bucket/x", "objectives": {"label": None}}
    pipeline(tmp_path, [{"name": "s", "train": labels}]).run(lambda _: {})
    written = read_yaml(tmp_path / "pipeline.yaml")
    expected = {**labels, "data": "s3://***@bucket/x"}
    assert written["stages"] == [{"name": "s", "train": expected}]


def test_what_is_inside_of_a_result_has_a_longer_path(tmp_path: Path) -> None:
    """Lists by number, mappings by name, as a value and as the key of a mapping."""
    result = {"taps": ["a", "b"], "groups": {"a": 1}}
    values = {"x": "stage:one/taps/1", "y": {"stage:one/taps/0": "stage:one/groups/a"}}

    def run(values: dict[str, Any]) -> dict[str, Any]:
        found: list[dict[str, Any]] = []
        stages = [{"name": "one", "train": {}}, {"name": "two", "train": values}]

        def note(stage: Stage) -> dict[str, Any]:
            found.append(stage.values)
            return result

        pipeline(tmp_path, stages).run(note)
        return found[-1]

    ran = run(values)
    assert (ran["x"], ran["y"]) == ("b", {"a": 1})
    for path in ("taps/2", "taps/a", "groups/b", "groups/a/0"):
        with pytest.raises(UsageError, match=f"no field '{path}'"):
            run({"x": f"stage:one/{path}"})
    with pytest.raises(UsageError, match="no earlier stage 'none'"):
        run({"y": {"stage:none/taps/0": {}}})


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
        pipeline(tmp_path, misspelt).run(lambda _: {}, ["s"])
    with pytest.raises(UsageError, match="no earlier stage 'weight'"):
        pipeline(tmp_path, [{"name": "s", "train": {"a": "stage:weight/teachers"}}])


def test_unfinished_stages_are_those_from_the_first_without_a_result(tmp_path: Path) -> None:
    assert pipeline(tmp_path).unfinished() == ["cache", "weights", "student"]
    ran(tmp_path, {"a": 1.0})
    assert pipeline(tmp_path).unfinished() == []
    (tmp_path / "weights.done.json").unlink()
    assert pipeline(tmp_path).unfinished() == ["weights", "student"]


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
    with pytest.raises(UsageError, match="needs a space after it"):
        override({}, [f"student.kwargs={text}"])
    (tmp_path / "p.yaml").write_text(f"student: {text}\n")
    with pytest.raises(UsageError, match="needs a space after it") as caught:
        read_yaml(tmp_path / "p.yaml")
    assert caught.value.where == tmp_path / "p.yaml"
    assert override({}, ["data=torch/cifar10:here"]) == {"data": "torch/cifar10:here"}


def test_a_field_below_a_value_says_what_to_set() -> None:
    with pytest.raises(UsageError) as caught:
        override({"data": "digits"}, ["data.name.x=photos"])
    assert caught.value.got == "'digits'"
    assert caught.value.hint == "set that value instead: --set data.name=VALUE"


@pytest.mark.parametrize("before", ["digits", {"name": "digits", "limit": 9}])
def test_images_are_named_in_either_form(before: object) -> None:
    found = override({"data": before}, ["data.name=photos", "data.limit=9"])
    assert found == {"data": {"name": "photos", "limit": 9}}


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        (None, "photos"),
        ("others", "others"),
        ({"limit": 5}, {"name": "photos", "limit": 5}),
        ({"name": "others"}, {"name": "others"}),
        (
            {"parts": {"real": {"limit": 5}, "made": {"name": "stage:made"}, "all": "others"}},
            {
                "parts": {
                    "real": {"name": "photos", "limit": 5},
                    "made": {"name": "made.out"},
                    "all": "others",
                }
            },
        ),
    ],
)
def test_images_of_a_stage_without_a_name_are_those_of_the_pipeline(
    own: object, expected: object
) -> None:
    """So that one setting, data.name, changes all of them."""
    made = {"name": "made", "synthesize": {"out": "x"}}
    stages = [made, {"name": "s", "train": {} if own is None else {"data": own}}]
    values = {"name": "p", "out": "o", "data": "photos", "stages": stages}
    found = Pipeline(PipelineConfig.parse(values, "p")).stages[1].values["data"]
    text = json.dumps(found).replace("o/made/images", "made.out")
    assert json.loads(text) == expected
    whole = {**values, "data": {"name": "photos", "limit": 7}}
    found = Pipeline(PipelineConfig.parse(whole, "p")).stages[1].values["data"]
    if own == {"limit": 5}:
        assert found == {"name": "photos", "limit": 5}
    if own is None:
        assert found == whole["data"]


def test_a_fitted_mixture_has_its_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fitted = {"teachers": {"a": 0.25, "b": 0.75}, "single": {"a": 0.5, "b": 0.6}, "accuracy": 0.7}
    stages = pipeline(tmp_path).run(
        lambda stage: {"sizes": {}} if stage.kind == "precompute" else fitted, only=["weights"]
    )
    print_pipeline([stages])
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("weights", "0.250", "0.750", "50.0 %", "70.0 %"))
    other = [
        StageResult(s.stage, {**s.values, "teachers": {"a": 0.5, "b": 0.5}}, False) for s in stages
    ]
    print_pipeline([stages, other])
    assert "0.375 ± 0.177" in capsys.readouterr().out


def test_every_kind_of_stage_can_be_imported_and_takes_what_the_pipeline_fills_in() -> None:
    for kind in STAGE_KINDS.values():
        assert set(kind.given) <= set(kind.config_class().model_fields)
        assert callable(kind.runner())


def test_a_new_kind_of_stage_is_one_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It takes settings, is referred to by later stages, runs, and has a row in the table."""
    kind = StageKind(
        config=f"{__name__}:CountConfig",
        function=f"{__name__}:count",
        output="{folder}/count.txt",
        given={"out": "{output}", "seed": "seed"},
    )
    monkeypatch.setitem(STAGE_KINDS, "count", kind)
    config = importlib.reload(importlib.import_module("logitcache.pipeline.config"))
    values = {
        "name": "p",
        "out": str(tmp_path),
        "data": "digits",
        "count": {"step": 2},
        "stages": [
            {"name": "first", "count": {"upto": 4}},
            {"name": "second", "count": {"upto": 2, "after": "stage:first"}},
        ],
    }
    with StopRequest() as stop:
        made = Pipeline(config.PipelineConfig.parse(values, "p.yaml"), seed=3)
        results = made.run(stage_runner(stop))
    assert [result.values for result in results] == [{"count": 2}, {"count": 1}]
    assert results[1].stage.values == {
        "upto": 2,
        "step": 2,
        "after": str(tmp_path / "first" / "count.txt"),
        "out": str(tmp_path / "second" / "count.txt"),
        "seed": 3,
    }
    print_pipeline([results])
    assert "count 2" in capsys.readouterr().out
    monkeypatch.undo()
    importlib.reload(config)


class CountConfig(Config):
    """Settings of a stage that counts."""

    upto: int
    step: int = 1
    after: str = ""
    out: str = ""
    seed: int = 0


@dataclass(frozen=True)
class CountResult:
    """The result of a stage that counts."""

    count: int

    def to_json(self) -> dict[str, int]:
        """Return the result as JSON values."""
        return asdict(self)


def count(config: CountConfig) -> CountResult:
    """Count up to a number in steps."""
    return CountResult(len(range(0, config.upto, config.step)))
