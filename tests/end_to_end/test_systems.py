"""Every system's pipeline on digits, its teachers shared, its students without any."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING, Any

import pytest
import timm
import torch
import yaml
from filelock import FileLock

from logitcache.cache.read.reader import open_cache
from logitcache.cli.interrupt import StopRequest
from logitcache.cli.run import load_pipelines
from logitcache.cli.stages import stage_runner
from logitcache.errors import Interrupted
from logitcache.objectives.combine import TERMS
from logitcache.targets.loader import loader
from logitcache.training.config import TrainConfig
from logitcache.training.loop import train_student
from logitcache.training.optimization.gradient import BatchGradient
from logitcache.training.run.journal import read_journal
from logitcache.training.run.result import read_result
from tests.training.test_loop import assert_equal_runs, stop_after

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from logitcache.batch import TargetBatch
    from logitcache.pipeline.run import Pipeline, StageResult

SYSTEMS = [
    *("libkd", "vitkd", "wecolora", "tinyvit", "nkd", "rkd", "nfd", "gram", "assistants"),
    *("pursuhint", "dpk", "rtk", "transkd", "cakd", "mfef", "prockd"),
    *("sgva", "dmae", "hssakd", "tas", "ghost", "ota", "ssda"),
    *("tst",),
]
TEACHERS = {"cnn": "nkd", "rednet": "nfd", "vit": "vitkd", "mae": "dmae"}
"""Stages that several systems share, and a pipeline that has each."""

CHANCE = 0.1
OTHER_SCALE = {
    "nkd": "a teacher that is wrong about the label weighs that label less",
    "dpk": "a student that is less like its teacher is given more of it",
    "tas": "its own term compares with pixels, which are not shuffled",
}
"""Systems whose losses with right and with shuffled targets cannot be compared, and why."""
CONTESTED = {"adversarial"}
"""Terms that need not fall, since the student is trained to increase them."""
BETTER_THAN = {"sgva": "tower", "ota": "real"}
"""Systems whose student has to be better than another stage: without the system's own part."""
STUDENT = {"ssda": "student-2"}
"""Stages that are the student of a system, where it has several."""
OWN_TERMS = {"ssda": {"label_3"}}
"""Own terms of a system where they are labels: the pseudo labels."""
JUDGED = {"dmae": "finetuned"}
"""Stages whose accuracy is that of the system, where it is not the student's own."""
STATELESS = {"libkd", "tinyvit", "nkd", "rkd", "nfd", "gram", "assistants"}
"""Systems whose runs have no state but that of any student's; all others are resumed."""
LABEL_FREE = {"tinyvit", "wecolora", "assistants", "rkd", "dmae"}
"""Systems whose papers train without labels, too."""
COMPARED = [
    *("labels", "kd", "tuned", "probe", "probe-copy", "probe-tuned"),
    *("alone", "finetuned-alone", "any"),
]
"""Stages that a system is compared with in docs/results.md: here they only have to run."""


def load(name: str, out: Path) -> Pipeline:
    (whole,) = load_pipelines(name, out=str(out), seeds=1, sets=[])
    compared = [stage.name for stage in whole.stages if stage.name in COMPARED]
    sets = ["data=digits", *(f"stages.{name}.train.steps=5" for name in compared)]
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


def own_terms(names: Iterable[str]) -> list[str]:
    """Return a system's own terms: all but labels and contested ones, and but plain soft targets
    where there are others.
    """
    compared = TERMS.keys() - {"label"} - CONTESTED
    terms = [name for name in names if name.partition("_")[0] in compared]
    return [name for name in terms if not name.startswith("soft")] or terms


def own_losses(folder: Path, system: str) -> list[dict[str, float]]:
    """Return the unweighted losses of a system's own terms in every epoch."""
    events = read_journal(folder)
    own = OWN_TERMS.get(system, own_terms(events[0]))
    return [{name: event[name] for name in own} for event in events]


def gradients(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """Return the gradient of every weighted term in the first step of a run, as one vector.

    It is that of the trained part of the student, without the parameters of the objective.
    """
    values = yaml.safe_load((folder / "config.yaml").read_text())
    config = TrainConfig.parse({**values, "out": str(folder / "step"), "val": None}, "train")
    found: dict[str, torch.Tensor] = {}

    def step(self: Any, _: object, images: torch.Tensor, targets: TargetBatch, __: float) -> None:
        visible = targets.visible
        outputs = self._trainable.outputs(self._trainable(images, visible), visible)
        weights = [w for w in self._trainable.network.parameters() if w.requires_grad]
        for name, part in self._objective.parts(outputs, targets).items():
            each = torch.autograd.grad(
                self._objective.total({name: part}),
                weights,
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
            found[name] = torch.cat([gradient.flatten() for gradient in each])
        raise StopIteration

    with monkeypatch.context() as patched:
        patched.setattr(BatchGradient, "__call__", step)
        with pytest.raises(StopIteration):
            train_student(config)
    return found


def check_joint(pipeline: Pipeline) -> None:
    """Check the joint distributions of the cache: over classes and over rotations."""
    layer, views = "cnn/branches.layer2", ["base", "rot90(1)", "rot90(2)", "rot90(3)"]
    with loader(
        open_cache(pipeline.out / "cache"),
        "digits",
        teachers=[],
        features=[layer],
        show=views,
        size=8,
        threads=1,
    ) as found:
        _, targets = next(found.epoch(0))
    joint_BCV = targets.features[layer].values.softmax(1).view(-1, 10, len(views))
    right = joint_BCV.sum(2).argmax(1) == targets.labels
    assert float(right.float().mean()) > 2 * CHANCE
    place = torch.arange(len(views)).repeat_interleave(len(right) // len(views))
    assert float((joint_BCV.sum(1).argmax(1) == place).float().mean()) > 2 / len(views)


def check_soft(pipeline: Pipeline) -> None:
    """Check that the student comes closer to its teacher than to shuffled outputs."""
    right, shuffled = (read_journal(pipeline.out / name)[-1] for name in ("student", "shuffled"))
    assert right["soft"] < shuffled["soft"]


EVIDENCE: dict[str, Callable[[Pipeline], None]] = {"hssakd": check_joint, "tas": check_soft}
"""Further checks of a finished pipeline, by system."""


def check_first_step(name: str, found: dict[str, torch.Tensor]) -> None:
    """Check what each term contributes to the gradient of the student in a first step."""
    assert all(torch.isfinite(gradient).all() for gradient in found.values())
    whole = torch.stack(list(found.values())).sum(0)
    for term in own_terms(found):
        without = whole - found[term]
        assert not torch.allclose(without, whole), f"removing {term} changes nothing"
    if name in LABEL_FREE:
        labels = [gradient for term, gradient in found.items() if term.startswith("label")]
        assert (whole - sum(labels, torch.zeros(()))).any(), "labels of weight 0 leave no gradient"


def check_resume(folder: Path) -> None:
    """Check that a student that is stopped after two steps ends as one that is not, bit for bit."""
    values = yaml.safe_load((folder / "config.yaml").read_text())
    values |= {"val": None, "epochs": None, "steps": 3}
    whole, cut = (
        TrainConfig.parse({**values, "out": str(folder / name)}, "train")
        for name in ("whole", "cut")
    )
    train_student(whole)
    with pytest.raises(Interrupted):
        train_student(cut, should_stop=stop_after(2))
    train_student(cut, resume=True)
    assert_equal_runs(folder / "cut", folder / "whole")


@pytest.mark.parametrize("pipeline", SYSTEMS, indirect=True)
@pytest.mark.usefixtures("no_teachers")
def test_a_system_learns_from_its_cache(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, students = split_at_cache(pipeline)
    run(pipeline, students)
    system = pipeline.config.name
    student = STUDENT.get(system, "student")
    losses = [event["loss"] for event in read_journal(pipeline.out / student)]
    assert losses[-1] < 0.9 * losses[0]
    first, *_, last = own_losses(pipeline.out / student, system)
    assert {name: last[name] < 0.9 * loss for name, loss in first.items()} == dict.fromkeys(
        first, True
    )
    if system not in OTHER_SCALE:
        *_, last_shuffled = own_losses(pipeline.out / "shuffled", system)
        assert sum(last.values()) < sum(last_shuffled.values()), "targets of other images are worse"
    result = read_result(pipeline.out / student)
    assert result is not None
    assert result.evaluation is not None
    judged = read_result(pipeline.out / JUDGED.get(system, student))
    assert judged is not None
    assert judged.evaluation is not None
    assert judged.evaluation.score > 2 * CHANCE
    if system in BETTER_THAN:
        start = read_result(pipeline.out / BETTER_THAN[system])
        assert start is not None
        assert start.evaluation is not None
        assert result.evaluation.score > start.evaluation.score + 0.02
    shuffled = read_result(pipeline.out / "shuffled")
    assert shuffled is not None
    assert shuffled.evaluation is not None
    assert shuffled.evaluation.loss != pytest.approx(result.evaluation.loss, rel=1e-4)
    mine, theirs = (weights(pipeline.out / name) for name in (student, "shuffled"))
    assert any(not torch.allclose(mine[name], theirs[name], rtol=1e-2) for name in mine)
    check_first_step(system, gradients(pipeline.out / student, monkeypatch))
    if system not in STATELESS:
        check_resume(pipeline.out / student)
    if system in EVIDENCE:
        EVIDENCE[system](pipeline)
    for name in set(students) & set(COMPARED):
        compared = read_result(pipeline.out / name)
        assert compared is not None
        assert compared.evaluation is not None
