"""Every system's pipeline on digits, its teachers shared, its students without any."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING

import pytest
import timm
import torch
from filelock import FileLock

from logitcache.cli.interrupt import StopRequest
from logitcache.cli.run import load_pipelines
from logitcache.cli.stages import stage_runner
from logitcache.training.journal import read_journal
from logitcache.training.result import read_result

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from logitcache.pipeline.run import Pipeline, StageResult

SYSTEMS = ["libkd", "vitkd", "wecolora", "tinyvit", "nkd", "rkd", "nfd", "gram", "assistants"]
TEACHERS = {"cnn": "nkd", "rednet": "nfd", "vit": "vitkd"}
"""Stages that several systems share, and a pipeline that has each."""
TEACHER_STEPS = {"cnn": 160, "rednet": 80, "vit": 160}
"""Enough for a student to learn from them; the pipelines themselves train longer."""

CHANCE = 0.1
COMPARED = ["labels", "kd", "tuned", "probe", "probe-copy", "probe-tuned"]
"""Stages that a system is compared with in docs/results.md: here they only have to run."""


def load(name: str, out: Path) -> Pipeline:
    (whole,) = load_pipelines(name, out=str(out), seeds=1, sets=[])
    steps = {**TEACHER_STEPS, **dict.fromkeys(COMPARED, 5)}
    names = [stage.name for stage in whole.stages if stage.name in steps]
    sets = ["data=digits", *(f"stages.{name}.train.steps={steps[name]}" for name in names)]
    (pipeline,) = load_pipelines(name, out=str(out), seeds=1, sets=sets)
    return pipeline


def run(pipeline: Pipeline, only: Sequence[str]) -> list[StageResult]:
    with StopRequest() as stop:
        return pipeline.run(stage_runner(stop), only)


def split_at_cache(pipeline: Pipeline) -> tuple[list[str], list[str]]:
    """Return the stages up to the last cache, without shared teachers, and those behind it."""
    last = max(i for i, stage in enumerate(pipeline.stages) if stage.kind == "precompute") + 1
    names = [stage.name for stage in pipeline.stages]
    return [name for name in names[:last] if name not in TEACHERS], names[last:]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Callable[[str], Path]:
    """Return what gives the folder of a teacher; processes of one test run train each once."""
    base = tmp_path_factory.getbasetemp()
    shared = (base if worker_id == "master" else base.parent) / "systems"
    shared.mkdir(exist_ok=True)

    def folder(name: str) -> Path:
        with FileLock(shared / f"{name}.lock"):
            run(load(TEACHERS[name], shared), [name])
        return shared / name

    return folder


@pytest.fixture
def pipeline(
    request: pytest.FixtureRequest, trained: Callable[[str], Path], tmp_path: Path
) -> Pipeline:
    """Return a pipeline whose teachers are trained and whose cache is made."""
    found = load(request.param, tmp_path)
    first, _ = split_at_cache(found)
    for name in TEACHERS.keys() & {stage.name for stage in found.stages}:
        shutil.copytree(trained(name), tmp_path / name)
    run(found, first)
    return found


@pytest.fixture
def no_teachers(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the teachers' package one that cannot be imported, once the cache is there."""
    del pipeline
    for name in [n for n in sys.modules if n.startswith("logitcache.teachers")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "logitcache.teachers", None)
    with pytest.raises(ImportError):
        __import__("logitcache.teachers.member")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    network = timm.create_model(f"local-dir:{folder / 'export'}", pretrained=True)
    return dict(network.state_dict())


@pytest.mark.parametrize("pipeline", SYSTEMS, indirect=True)
@pytest.mark.usefixtures("no_teachers")
def test_a_system_learns_from_its_cache(pipeline: Pipeline) -> None:
    _, students = split_at_cache(pipeline)
    run(pipeline, students)
    losses = [event["loss"] for event in read_journal(pipeline.out / "student")]
    assert losses[-1] < 0.9 * losses[0]
    result = read_result(pipeline.out / "student")
    assert result is not None
    assert result.evaluation is not None
    assert result.evaluation.top1 > 2 * CHANCE
    shuffled = read_result(pipeline.out / "shuffled")
    assert shuffled is not None
    assert shuffled.evaluation is not None
    assert shuffled.evaluation.loss != pytest.approx(result.evaluation.loss, rel=1e-3)
    mine, theirs = (weights(pipeline.out / name) for name in ("student", "shuffled"))
    assert any(not torch.allclose(mine[name], theirs[name], rtol=1e-2) for name in mine)
    for name in set(students) & set(COMPARED):
        compared = read_result(pipeline.out / name)
        assert compared is not None
        assert compared.evaluation is not None
