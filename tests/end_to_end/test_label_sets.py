"""Images with several classes, from the listing to the student: every command, and kills."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

from logitcache import open_cache
from logitcache.cache.store.local import LocalLocation
from logitcache.precompute.build import build_cache
from logitcache.precompute.config import PrecomputeConfig
from logitcache.training.config import TrainConfig
from logitcache.training.loop import train_student
from logitcache.training.run.journal import read_journal
from tests.cli.conftest import logitcache
from tests.conftest import write_teacher
from tests.label_set_images import TAGS, write_listing
from tests.processes import forking
from tests.reliability.kills import snapshot

if TYPE_CHECKING:
    from collections.abc import Callable

    from logitcache.training.run.progress import TrainProgress
    from tests.cli.conftest import Outcome

__all__ = ["logitcache"]

Values = dict[str, Any]
STUDENT = {"model": "resnet10t", "kwargs": {"channels": [8] * 4, "stem_width": 8}, "size": 16}


@pytest.fixture(scope="module")
def values(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Values:
    """Return the configuration of a cache of label sets and log-odds that is written."""
    root = tmp_path_factory.mktemp("label-sets")
    teacher = write_teacher(root / "teacher", classes=len(TAGS), model="cnn")
    values = {
        "cache": str(root / "cache"),
        "data": write_listing(images, root / "t.jsonl"),
        "teachers": {"t": {"model": f"local-dir:{teacher}", "head": "sigmoid"}},
        "views": {"count": 2, "mixup_alpha": 0.4},
        "unit_rows": 16,
    }
    build_cache(PrecomputeConfig.parse(values, ""))
    return values


@pytest.fixture(scope="module")
def training(values: Values, tmp_path_factory: pytest.TempPathFactory) -> Values:
    return {
        "data": values["data"],
        "val": values["data"],
        "cache": values["cache"],
        "student": STUDENT,
        "out": str(tmp_path_factory.mktemp("training") / "out"),
        "epochs": 3,
        "batch_size": 16,
        "eval_every": 1,
        "objectives": [{"soft": {"temperature": 2}}, {"label": {"weight": 0.5}}],
    }


def die_while_building(values: Values, writes: int) -> None:
    """Write a cache, and kill this process at one of its writes."""
    left, write = [writes], LocalLocation.write

    def counted(self: LocalLocation, *arguments: Any, **named: Any) -> None:
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        write(self, *arguments, **named)

    LocalLocation.write = counted  # type: ignore[method-assign]
    build_cache(PrecomputeConfig.parse(values, ""))


def die_while_training(values: Values, step: int) -> None:
    """Train, and kill this process after a step."""

    def killed(progress: TrainProgress) -> None:
        if progress.step >= step:
            os.kill(os.getpid(), signal.SIGKILL)

    train_student(TrainConfig.parse(values, ""), on_progress=killed)


def dies(function: Callable[..., None], *arguments: Any) -> None:
    process = forking().Process(target=function, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.skipif(os.name == "nt", reason="sends SIGKILL")
@pytest.mark.parametrize("writes", [12, 31, 55])
def test_a_killed_precompute_resumes_to_the_same_bytes(
    values: Values, tmp_path: Path, writes: int
) -> None:
    again = {**values, "cache": str(tmp_path / "cache")}
    dies(die_while_building, again, writes)
    summary = build_cache(PrecomputeConfig.parse(again, ""))
    assert summary.revision == 1
    assert snapshot(tmp_path / "cache") == snapshot(Path(values["cache"]))


@pytest.mark.skipif(os.name == "nt", reason="sends SIGKILL")
def test_a_killed_training_resumes_to_the_same_student(training: Values, tmp_path: Path) -> None:
    whole = train_student(TrainConfig.parse(training, ""))
    killed = {**training, "out": str(tmp_path / "out")}
    dies(die_while_training, killed, 7)
    resumed = train_student(TrainConfig.parse(killed, ""), resume=True)
    assert resumed.evaluation == whole.evaluation
    assert resumed.evaluation is not None
    assert resumed.evaluation.mean_average_precision is not None
    assert resumed.evaluation.top1 is None
    first, second = (
        load_file(f"{out['out']}/export/model.safetensors") for out in (training, killed)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    losses = [event["loss"] for event in read_journal(training["out"]) if "loss" in event]
    assert losses[-1] < losses[0]


@pytest.mark.requirement("F12.8.2")
def test_every_command_takes_label_sets(
    logitcache: Callable[..., Outcome], values: Values, training: Values, tmp_path: Path
) -> None:
    data = values["data"]
    (tmp_path / "c.yaml").write_text(json.dumps({**values, "cache": str(tmp_path / "cache")}))
    planned = logitcache("plan", tmp_path / "c.yaml", "--json")
    assert planned.code == 0, planned.err
    (teacher,) = planned.json["teachers"].values()
    assert teacher["accuracy"] is None
    done = logitcache("precompute", "--config", tmp_path / "c.yaml")
    assert done.code == 0, done.err
    inspected = logitcache("inspect", tmp_path / "cache")
    assert inspected.code == 0, inspected.err
    assert "log-odds, dense float16" in inspected.out
    source = ["--data", data["name"]]
    for name in ("root", "class_list"):
        source += ["--set", f"data.{name}={data[name]}"]
    checked = logitcache("verify", tmp_path / "cache", "--data", str(data["root"]))
    assert checked.code == 0, checked.err
    (tmp_path / "t.yaml").write_text(json.dumps({**training, "out": str(tmp_path / "student")}))
    trained = logitcache("train", "--config", tmp_path / "t.yaml")
    assert trained.code == 0, trained.err
    assert "mAP" in trained.out
    evaluated = logitcache("evaluate", tmp_path / "student" / "export", *source)
    assert evaluated.code == 0, evaluated.err
    assert "mAP" in evaluated.out
    survey = logitcache("inspect", tmp_path / "cache", "--survey")
    assert survey.code == 0, survey.err
    cache = open_cache(tmp_path / "cache")
    assert len(cache.samples.readable) == 60
    assert cache.manifest.teachers["t"].lock["head"] == "sigmoid"
