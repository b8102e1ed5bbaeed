"""The command line as a person meets it, in this process."""

from __future__ import annotations

import json
import re
import shutil
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from logitcache.errors import UsageError
from logitcache.pipeline.settings import shipped_pipelines
from tests.cache.building import make_cache, samples_of, start_cache, write_samples
from tests.training.test_loop import VIT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.conftest import Outcome

Teachers = dict[str, dict[str, str]]


@pytest.fixture
def flags(images: Path, teachers: Teachers, tmp_path: Path) -> list[object]:
    named = [f"--teacher={name}={value['model']}" for name, value in teachers.items()]
    return [
        "--cache",
        tmp_path / "cache",
        "--data",
        images,
        *named,
        "--views",
        2,
        "--unit-rows",
        16,
    ]


def test_from_teachers_to_a_student(
    logitcache: Callable[..., Outcome], flags: list[object], images: Path, tmp_path: Path
) -> None:
    made = logitcache("precompute", *flags, "--json")
    assert made.code == 0, made.err
    assert made.json["images"] == 60
    assert made.json["views"] == 2
    assert made.json["accuracy"].keys() == {"cnn", "red"}
    assert made.json["sizes"]["cnn"]["dense_float32"] == 60 * 2 * 3 * 4
    again = logitcache("precompute", *flags)
    assert "0 computed" in again.out
    looked = logitcache("inspect", tmp_path / "cache", "--json").json
    assert looked["complete"] is True
    assert [t["name"] for t in looked["teachers"]] == ["cnn", "red"]
    assert looked["teachers"][0]["fidelity"]["rows"] == 60
    shown = logitcache("inspect", tmp_path / "cache").out
    assert "rednet26_small" in shown
    assert "top-1 kept" in shown
    state = logitcache("status", tmp_path / "cache")
    assert (state.code, "complete, revision 1" in state.out) == (0, True)
    train: list[object] = [
        "train",
        "--cache",
        tmp_path / "cache",
        "--data",
        images,
        "--val",
        images,
    ]
    train += ["--student", VIT["model"], "--epochs", 1, "--objective", "soft"]
    train += ["--objective", "label=0.5", "--out", tmp_path / "student", "--batch-size", 16]
    kwargs: Any = VIT["kwargs"]
    train += [part for k, v in kwargs.items() for part in ("--set", f"student.kwargs.{k}={v}")]
    trained = logitcache(*train, "--json")
    assert trained.code == 0, trained.err
    assert trained.json["steps"] == 4
    saved = yaml.safe_load((tmp_path / "student" / "config.yaml").read_text())
    assert saved["objectives"][1]["label"]["weight"] == 0.5
    refused = logitcache(*train)
    assert (refused.code, "--resume" in refused.err) == (2, True)
    assert logitcache(*train, "--resume").code == 0


def test_a_file_flags_and_assignments_in_this_order(
    logitcache: Callable[..., Outcome],
    images: Path,
    teachers: Teachers,
    tmp_path: Path,
) -> None:
    file = tmp_path / "c.yaml"
    values = {"cache": str(tmp_path / "c"), "data": str(images), "teachers": teachers}
    file.write_text(yaml.safe_dump({**values, "views": {"count": 5}, "unit_rows": 16}))
    made = logitcache(
        "precompute", "--config", file, "--views", 3, "--set", "views.count=1", "--json"
    )
    assert made.code == 0, made.err
    assert made.json["views"] == 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["precompute", "--cache", "c"], 2, "precompute.teachers"),
        (["precompute", "--teacher", "resnet50"], 2, "NAME=MODEL[@WEIGHTS]"),
        (["precompute", "--teacher", "a=x", "--teacher", "a=y"], 2, "same name"),
        (
            ["precompute", "--teacher", "a=resnet51", "--cache", "c", "--data", "digits"],
            2,
            "resnet",
        ),
        (["precompute", "--set", "device=gpu"], 2, "the device cannot be used"),
        (["precompute", "--set", "teachers.t.model.x=1"], 2, "below a single value"),
        (["train", "--set", "objectives=[{soft: {}}]", "--set", "objectives.0=1"], 2, "as a whole"),
        (["precompute", "--config", "nowhere.yaml"], 2, "the file cannot be read"),
        (["precompute", "--set", "views.cuont=3"], 2, "did you mean 'count'"),
        (["precompute", "--set", "views"], 2, "no assignment"),
        (
            ["train", "--out", "o", "--data", "digits", "--student", "vitt", "--epochs", "1"],
            2,
            "vit",
        ),
        (["train", "--objective", "sofft"], 2, "did you mean 'soft'"),
        (["train", "--objective", "soft=a"], 2, "not a number"),
        (["inspect", "nowhere"], 1, "no cache here"),
        (["train", "--set", "student.kwargs={img_size:32}"], 2, "img_size: 32"),
        (
            ["precompute", "--set", "data.name.x=d"],
            2,
            "set that value instead: --set data.name=VALUE",
        ),
        (["status", "nowhere"], 1, "no cache here"),
        (["run", "cifar11"], 2, "did you mean 'cifar10'"),
        (["nonsense"], 2, "No such command"),
        ([], 2, ""),
    ],
)
def test_what_cannot_be_is_told_without_a_traceback(
    logitcache: Callable[..., Outcome],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    base = {
        "precompute": ["--cache", "c", "--data", "digits", "--teacher", "t=resnet10t@w"],
        "train": ["--out", "o", "--data", "digits", "--student", "resnet10t", "--epochs", "1"],
    }
    if len(arguments) == 3 and arguments[1] in {"--set", "--objective"}:
        arguments = [arguments[0], *base[arguments[0]], *arguments[1:]]
    outcome = logitcache(*arguments)
    assert outcome.code == code
    assert message in outcome.err
    assert "Traceback" not in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_cannot_be_written(
    logitcache: Callable[..., Outcome], images: Path, tmp_path: Path
) -> None:
    file = tmp_path / "student"
    file.write_text("not a folder")
    fields = {"model": VIT["model"], "kwargs": VIT["kwargs"]}
    config = tmp_path / "train.yaml"
    config.write_text(yaml.safe_dump({"student": fields, "steps": 1, "data": str(images)}))
    refused = logitcache("train", "--config", config, "--out", file)
    assert refused.code == 3
    assert "a file cannot be read or written" in refused.err
    assert str(file) in refused.err
    assert "Traceback" not in refused.err


def test_an_unfinished_cache(logitcache: Callable[..., Outcome], tmp_path: Path) -> None:
    writer = start_cache(tmp_path / "c", 40)
    state = logitcache("status", tmp_path / "c", "--json")
    assert (state.code, state.json["complete"]) == (3, False)
    write_samples(writer, samples_of(40))
    assert "not sealed" in logitcache("status", tmp_path / "c").out
    assert "not sealed" in logitcache("inspect", tmp_path / "c").out
    trained = logitcache(
        "train", "--cache", tmp_path / "c", "--data", "digits", "--student", "resnet10t",
        "--epochs", 1, "--out", tmp_path / "o",
    )  # fmt: skip
    assert (trained.code, "not finished" in trained.err) == (3, True)


def test_a_damaged_cache(logitcache: Callable[..., Outcome], tmp_path: Path) -> None:
    import numpy as np

    from logitcache.encoding.dense import DenseEncoding

    logits = np.zeros((40, 3), np.float32)
    make_cache(tmp_path / "c", {"a": (DenseEncoding(3), logits)}, 40)
    shutil.rmtree(tmp_path / "c" / "samples" / "key" / "c")
    trained = logitcache(
        "train", "--cache", tmp_path / "c", "--data", "digits", "--student", "resnet10t",
        "--epochs", 1, "--out", tmp_path / "o",
    )  # fmt: skip
    assert (trained.code, "missing" in trained.err) == (4, True)


def pipeline_file(path: Path, images: Path, **fields: object) -> Path:
    kwargs: Any = VIT["kwargs"]
    tiny = {"model": "rednet26_small", "kwargs": {"layers": [1], "width": 32}, "size": 8}
    values = {
        "name": "tiny",
        "out": str(path.parent / "out"),
        "data": str(images),
        "val": str(images),
        "train": {"batch_size": 16, "steps": 2},
        "precompute": {"unit_rows": 16, "views": {"count": 1}},
        "stages": [
            {"name": "red", "train": {"student": tiny}},
            {"name": "cache", "precompute": {"teachers": {"red": {"model": "stage:red"}}}},
            {
                "name": "student",
                "train": {
                    "student": {"model": VIT["model"], "kwargs": kwargs},
                    "cache": "stage:cache",
                },
            },
        ],
        **fields,
    }
    path.write_text(yaml.safe_dump(values))
    return path


def test_a_pipeline_runs_its_stages_and_skips_what_is_done(
    logitcache: Callable[..., Outcome], images: Path, tmp_path: Path
) -> None:
    file = pipeline_file(tmp_path / "p.yaml", images)
    first = logitcache("run", file, "--json")
    assert first.code == 0, first.err
    stages = first.json["runs"][0]
    assert list(stages) == ["red", "cache", "student"]
    assert stages["student"]["steps"] == 2
    shutil.rmtree(tmp_path / "out" / "red" / "export")
    again = logitcache("run", file, "--json")
    assert again.json == first.json
    assert "cache of all teachers" in logitcache("run", file).out
    changed = logitcache("run", file, "--set", "stages.student.train.batch_size=8")
    assert (changed.code, "a different configuration" in changed.err) == (2, True)


def test_a_pipeline_evaluates_a_network(
    logitcache: Callable[..., Outcome], images: Path, tmp_path: Path
) -> None:
    """The validation images of the pipeline are those of the stage."""
    tiny = {"model": "rednet26_small", "kwargs": {"layers": [1], "width": 32}, "size": 8}
    stages = [
        {"name": "red", "train": {"student": tiny}},
        {"name": "score", "evaluate": {"network": {"model": "stage:red"}, "batch_size": 8}},
    ]
    file = pipeline_file(tmp_path / "p.yaml", images, stages=stages)
    found = logitcache("run", file, "--json")
    assert found.code == 0, found.err
    trained, scored = found.json["runs"][0].values()
    assert scored["evaluation"]["top1"] == trained["evaluation"]["top1"]
    shown = logitcache("run", file).out
    assert "evaluation" in shown
    assert "score" in shown


def test_a_pipeline_over_seeds_shows_mean_and_spread(
    logitcache: Callable[..., Outcome], images: Path, tmp_path: Path
) -> None:
    file = pipeline_file(tmp_path / "p.yaml", images)
    outcome = logitcache("run", file, "--seeds", 2)
    assert outcome.code == 0, outcome.err
    assert outcome.out.count("±") >= 3
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"seed-0", "seed-1"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stages": [{"name": "a", "train": {"cache": "stage:b"}}]}, "no earlier stage 'b'"),
        ({"stages": [{"name": "a", "train": {}}, {"name": "a", "train": {}}]}, "two stages"),
        ({"stages": [{"name": "a"}]}, "one of precompute, train, fit_weights, pick_hints"),
        ({"stage": []}, "did you mean 'stages'"),
        ({"stages": [{"name": "a", "train": {"stepps": 1}}]}, "did you mean 'steps'"),
    ],
)
def test_a_pipeline_that_cannot_be(
    logitcache: Callable[..., Outcome],
    images: Path,
    tmp_path: Path,
    fields: dict[str, object],
    message: str,
) -> None:
    outcome = logitcache("run", pipeline_file(tmp_path / "p.yaml", images, **fields))
    assert (outcome.code, message in outcome.err) == (2, True), outcome.err


def test_a_pipeline_that_is_stopped_says_how_to_go_on(
    logitcache: Callable[..., Outcome],
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = pipeline_file(tmp_path / "p.yaml", images)
    with monkeypatch.context() as stopping:
        stopping.setattr("logitcache.cli.interrupt.StopRequest.__call__", lambda self: True)
        stopped = logitcache("run", file)
    assert (stopped.code, "re-run the same command" in stopped.err) == (3, True), stopped.err
    assert logitcache("run", file).code == 0


def test_only_some_stages(logitcache: Callable[..., Outcome], images: Path, tmp_path: Path) -> None:
    file = pipeline_file(tmp_path / "p.yaml", images)
    assert list(logitcache("run", file, "--only", "red", "--json").json["runs"][0]) == ["red"]
    wrong = logitcache("run", file, "--only", "rde")
    assert (wrong.code, "did you mean 'red'" in wrong.err) == (2, True)


@pytest.mark.parametrize("name", shipped_pipelines())
def test_every_shipped_pipeline_is_well_formed(name: str) -> None:
    from logitcache.pipeline.config import PipelineConfig
    from logitcache.pipeline.run import Pipeline
    from logitcache.pipeline.settings import read_yaml
    from logitcache.pipeline.stage_kinds import STAGE_KINDS

    pipeline = Pipeline(PipelineConfig.parse(read_yaml(shipped_pipelines()[name]), name))
    for stage in pipeline.stages:
        written = json.dumps(stage.values).replace('"stage:weights/teachers"', '{"large": 1.0}')
        written = written.replace('"stage:bits/bits"', '{"layer1.0.conv1": 4}')
        written = re.sub(r"stage:hints/taps/(\d)", r"layer\1", written)
        STAGE_KINDS[stage.kind].config_class().parse(json.loads(written), stage.name)


def test_not_yaml(tmp_path: Path) -> None:
    from logitcache.pipeline.settings import read_yaml

    (tmp_path / "a.yaml").write_text("a: [1")
    with pytest.raises(UsageError, match="invalid YAML"):
        read_yaml(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_text("- 1")
    with pytest.raises(UsageError, match="no YAML mapping"):
        read_yaml(tmp_path / "b.yaml")


def test_the_version(logitcache: Callable[..., Outcome]) -> None:
    assert logitcache("--version").out.strip() == version("logitcache")


def test_verify_and_repair(
    logitcache: Callable[..., Outcome],
    flags: list[object],
    images: Path,
    teachers: Teachers,
    tmp_path: Path,
) -> None:
    cache, red = tmp_path / "cache", f"red={teachers['red']['model']}"
    assert logitcache("precompute", *flags).code == 0
    sound = logitcache("verify", cache)
    assert (sound.code, "bytes: ok" in sound.out) == (0, True), sound.err
    assert "view fingerprints: not checked" in sound.out
    whole = logitcache("verify", cache, "--data", images, "--teachers", red, "--json")
    assert whole.code == 0, whole.err
    assert whole.json["images"]["digested"] == 60
    assert whole.json["audits"][0]["agreement"] >= 0.95
    (cache / "teachers/red/logp/c/1/2/0").write_bytes(b"")
    found = logitcache("verify", cache)
    assert found.code == 4
    assert "unit 2, array logp" in " ".join(found.out.split())
    assert logitcache("verify", cache, "--quick", "--json").json["faults"][0]["cause"] == "empty"
    refused = logitcache("repair", cache, "--data", images)
    assert (refused.code, "--teacher red=MODEL@WEIGHTS" in refused.err) == (2, True)
    mended = logitcache("repair", cache, "--data", images, "--teacher", red, "--json")
    assert (mended.code, mended.json["recomputed"], mended.json["remaining"]) == (0, 1, [])
    assert "ok" in logitcache("repair", cache, "--data", images).out
    assert logitcache("verify", cache).code == 0


def test_verify_names_images_that_differ(
    logitcache: Callable[..., Outcome], flags: list[object], images: Path, tmp_path: Path
) -> None:
    cache, other = tmp_path / "cache", tmp_path / "other"
    assert logitcache("precompute", *flags).code == 0
    shutil.copytree(images, other)
    victim = other / "dog/003.jpg"
    content = bytearray(victim.read_bytes())
    content[-10] ^= 1
    victim.write_bytes(content)
    found = logitcache("verify", cache, "--data", other)
    assert (found.code, "replaced under the same name: dog/003.jpg" in found.out) == (4, True)
    assert logitcache("verify", cache, "--data", other, "--quick").code == 0, "sizes alone"
    alone = logitcache("verify", cache, "--teachers", "red=resnet10t@w")
    assert (alone.code, "--data" in alone.err) == (2, True)


@pytest.mark.requirement("F11.25")
def test_excluded_images_are_counted(
    logitcache: Callable[..., Outcome], flags: list[object], images: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    assert logitcache("precompute", *flags).code == 0
    done = logitcache("exclude", cache, "dog/003.jpg", "--reason", "a face")
    assert (done.code, "1 images are excluded" in done.out, done.err) == (0, True, "")
    former = logitcache("withdraw", cache, "dog/004.jpg")
    assert (former.code, "2 images are excluded" in former.out) == (0, True)
    assert "withdraw is deprecated; use logitcache exclude" in former.err
    assert "withdraw" not in logitcache("--help").out
    assert logitcache("inspect", cache, "--json").json["withdrawn"] == 2
    assert "0 images could not be decoded, 2 are excluded" in logitcache("inspect", cache).out
    train: list[object] = ["train", "--cache", cache, "--data", images, "--student", VIT["model"]]
    kwargs: Any = VIT["kwargs"]
    train += [part for k, v in kwargs.items() for part in ("--set", f"student.kwargs.{k}={v}")]
    trained = logitcache(*train, "--steps", 1, "--out", tmp_path / "student", "--batch-size", 16)
    assert trained.code == 0, trained.err
    assert "2 images were excluded and were not used" in trained.out


def test_a_dry_run_prints_settings_that_config_reads(
    logitcache: Callable[..., Outcome], flags: list[object], tmp_path: Path
) -> None:
    shown = logitcache("precompute", *flags, "--set", "views.hflip=0.25", "--dry-run")
    assert shown.code == 0, shown.err
    assert not (tmp_path / "cache").exists()
    (tmp_path / "settings.yaml").write_text(shown.out)
    again = logitcache("precompute", "--config", tmp_path / "settings.yaml", "--dry-run")
    assert again.out == shown.out
    settings = logitcache("precompute", *flags, "--dry-run", "--json").json["settings"]
    assert settings["views"]["count"] == 2
    assert settings["device"] == "auto", "defaults are included"
    train = ["train", "--data", "photos", "--student", "vit_tiny_patch16_224", "--epochs", "3"]
    (tmp_path / "train.yaml").write_text(logitcache(*train, "--out", "run", "--dry-run").out)
    found = logitcache("train", "--config", tmp_path / "train.yaml", "--dry-run", "--json").json
    assert (found["command"], found["settings"]["epochs"]) == ("train", 3)
