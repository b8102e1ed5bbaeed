"""Options of training recipes: accumulation, memory format, compilation, schedules, layer decay."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
from timm.models import group_parameters

from logitcache.batch import DenseLogits, Features, TargetBatch
from logitcache.errors import Interrupted, UsageError
from logitcache.networks.build import NetworkConfig, build_network
from logitcache.objectives.combine import ObjectiveConfig, build_objective
from logitcache.training import distributed
from logitcache.training.config import OptimizerConfig, ScheduleConfig, TrainConfig
from logitcache.training.loop import train_student
from logitcache.training.optimization.gradient import part_rows
from logitcache.training.optimization.optimization import build_optimizer, build_schedule, compiled
from logitcache.training.optimization.trainable_student import TrainableStudent
from logitcache.training.run.journal import read_journal
from tests.training.test_loop import VIT, assert_equal_runs, config, stop_after, weights

if TYPE_CHECKING:
    from pathlib import Path

    from accelerate import Accelerator

PLAIN_VIT: dict[str, Any] = {**VIT, "kwargs": {**VIT["kwargs"], "drop_path_rate": 0.0}}  # type: ignore[dict-item]  # a mapping
CNN = {"model": "resnet10t", "size": 16, "kwargs": {"stem_width": 16, "channels": [16] * 4}}

ADVERSARIAL: dict[str, Any] = {"teacher": "t", "tap": "norm", "hidden": 4}


def resumes_exactly(tmp_path: Path, images: Path, **fields: Any) -> list[dict[str, Any]]:
    """Train a run, and another one that is stopped twice; return the journal."""
    train_student(config(tmp_path / "whole", images, **fields))
    for index, steps in enumerate((3, 4)):
        with pytest.raises(Interrupted):
            train_student(
                config(tmp_path / "cut", images, **fields),
                resume=index > 0,
                should_stop=stop_after(steps),
            )
    train_student(config(tmp_path / "cut", images, **fields), resume=True)
    assert_equal_runs(tmp_path / "whole", tmp_path / "cut")
    return read_journal(tmp_path / "whole")


@pytest.mark.parametrize(
    "fields",
    [
        {"accumulate": 3},
        {"channels_last": True, "student": CNN, "ema": 0.9},
        {"optimizer": {"layer_decay": 0.5}},
        {"schedule": {"name": "multistep", "milestones": [0.3, 0.7], "warmup": 0}},
        {"precision": "bf16", "accumulate": 2},
        {"precision": "fp16", "optimizer": {"clip_grad": 1.0}},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_a_resumed_run_ends_with_the_same_weights(
    images: Path, tmp_path: Path, fields: dict[str, Any]
) -> None:
    resumes_exactly(tmp_path, images, **fields)


def test_the_scale_of_the_loss_is_resumed(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with fp16 on an accelerator: the scale overflows at first and grows every two steps.

    By a factor of three, so that it never returns to the power of two that it started with.
    """
    make = distributed._accelerator
    scalers: list[torch.amp.GradScaler] = []

    def scaled(cpu: bool, precision: str) -> Accelerator:
        accelerator = make(cpu, precision)
        settings = {"init_scale": 2.0**126, "growth_interval": 2, "growth_factor": 3.0}
        accelerator.scaler = torch.amp.GradScaler("cpu", **settings)  # type: ignore[arg-type]  # floats and an int
        scalers.append(accelerator.scaler)
        return accelerator

    monkeypatch.setattr(distributed, "_accelerator", scaled)
    resumes_exactly(tmp_path, images)
    scales = [scaler.get_scale() for scaler in scalers]
    assert scales[0] == scales[-1] != 2.0**126


@pytest.mark.parametrize("count", [2, 4, 100])
def test_accumulated_gradients_are_those_of_the_whole_batch(
    images: Path, tmp_path: Path, count: int
) -> None:
    """Also where some parts have fewer labels than others, and the last batch is smaller."""
    fields: dict[str, Any] = {
        "student": PLAIN_VIT,
        "labels": 25,
        "objectives": ["label", {"label": {"smoothing": 0.1, "weight": 0.5}}],
        "optimizer": {"name": "sgd", "lr": 0.1, "clip_grad": 1.0},
    }
    train_student(config(tmp_path / "whole", images, **fields))
    train_student(config(tmp_path / "parts", images, accumulate=count, **fields))
    ours, theirs = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-6)
    losses = [
        [event["loss"] for event in read_journal(tmp_path / name) if event["event"] == "epoch"]
        for name in ("whole", "parts")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_parts_have_the_same_images_in_all_views() -> None:
    parts = part_rows(14, 2, 3)
    assert [part.tolist() for part in parts] == [
        [0, 1, 2, 7, 8, 9],
        [3, 4, 10, 11],
        [5, 6, 12, 13],
    ]
    assert [len(part) for part in part_rows(5, 1, 100)] == [3, 2]
    assert [part.tolist() for part in part_rows(1, 1, 4)] == [[0]]


def test_hooks_see_the_outputs_of_all_parts_in_order(images: Path, tmp_path: Path) -> None:
    seen: list[torch.Tensor] = []

    class Recorder:
        def on_step(self, step: Any) -> None:
            seen.append(step.outputs.logits)

        def on_epoch(self, epoch: int) -> None: ...

        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state: dict[str, Any]) -> None: ...

    for name, count in (("whole", 1), ("parts", 4)):
        run = config(tmp_path / name, images, student=PLAIN_VIT, accumulate=count, epochs=1)
        train_student(run, hooks={"recorder": Recorder()})
    half = len(seen) // 2
    assert half > 1
    for one, other in zip(seen[:half], seen[half:], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_a_relation_of_the_images_of_a_batch_is_not_computed_in_parts(tmp_path: Path) -> None:
    relation = {"teacher": "cnn", "tap": "layer1", "student": "blocks.0", "form": "gram"}
    values: dict[str, Any] = {"out": str(tmp_path), "data": "x", "cache": "c", "student": VIT}
    values |= {"epochs": 1, "accumulate": 2}
    with pytest.raises(UsageError, match=r"compares the images of a batch[\s\S]*accumulate"):
        TrainConfig.parse({**values, "objectives": [{"relation": relation}]}, "train")
    tokens = {**relation, "over": "tokens"}
    TrainConfig.parse({**values, "objectives": [{"relation": tokens}]}, "train")


@pytest.mark.parametrize("fields", [{"accumulate": 2}, {"batch_size": 1}])
def test_a_share_by_the_alignment_of_a_batch_needs_the_batch(
    tmp_path: Path, fields: dict[str, Any]
) -> None:
    """A single image has no alignment, so all would be the teacher's; a fixed share needs none."""
    values = {"out": str(tmp_path), "data": "x", "cache": "c", "student": VIT, "epochs": 1}
    match = {"teacher": "cnn", "tap": "layer1", "student": "blocks.0"}
    prior = {**match, "projector": "prior"}
    with pytest.raises(UsageError, match="match compares the images of a batch"):
        TrainConfig.parse({**values, **fields, "objectives": [{"match": prior}]}, "train")
    fixed = {**match, "projector": {"kind": "prior", "ratio": 0.5}}
    TrainConfig.parse({**values, **fields, "objectives": [{"match": fixed}]}, "train")


def test_channels_last_changes_the_memory_format_alone(images: Path, tmp_path: Path) -> None:
    for name, on in (("a", False), ("b", True)):
        train_student(config(tmp_path / name, images, student=CNN, channels_last=on, epochs=1))
    ours, theirs = weights(tmp_path / "a"), weights(tmp_path / "b")
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=2e-2, atol=2e-3)


def trainable(model: str = "vit_tiny_patch16_224", objective: object = "label") -> TrainableStudent:
    kwargs: Any = PLAIN_VIT["kwargs"]
    network = build_network(NetworkConfig(model=model, kwargs={**kwargs, "num_classes": 3}))
    terms = build_objective([ObjectiveConfig.model_validate(objective)])
    features = {"t/norm": Features(torch.zeros(1, 5, 16), "NLC", grid=2, prefix_tokens=1)}
    return TrainableStudent(network, terms, size=8, features=features)


def test_layers_have_the_learning_rates_that_timm_gives_them() -> None:
    student = trainable()
    optimizer = build_optimizer(student, OptimizerConfig(lr=0.1, layer_decay=0.5))
    build_schedule(optimizer, ScheduleConfig(name="constant", warmup=0), 10, 0.1)
    names = {id(parameter): name for name, parameter in student.named_parameters()}
    found = {
        names[id(parameter)].removeprefix("network."): group["lr"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    network: Any = student.network
    layers = group_parameters(network, network.group_matcher(), reverse=True)
    last = max(layers.values())
    assert last >= 3  # embedding, two blocks, head
    for name, layer in layers.items():
        assert found[name] == pytest.approx(0.1 * 0.5 ** (last - layer)), name


@pytest.mark.parametrize("decay", [None, 0.5])
def test_a_part_of_an_objective_has_a_multiple_of_the_learning_rate(decay: float | None) -> None:
    """All others have what they have without it, and the schedule keeps the ratio."""
    rates = []
    for scale in (0.01, 1.0):
        torch.manual_seed(0)
        student = trainable(objective={"adversarial": {**ADVERSARIAL, "lr_scale": scale}})
        optimizer = build_optimizer(student, OptimizerConfig(lr=0.1, layer_decay=decay))
        schedule = build_schedule(optimizer, ScheduleConfig(name="cosine", warmup=0), 10, 0.1)
        schedule.step_update(3)
        names = {id(parameter): name for name, parameter in student.named_parameters()}
        rates.append({names[id(p)]: g["lr"] for g in optimizer.param_groups for p in g["params"]})
    assert rates[0].keys() == rates[1].keys() == set(names.values())
    for name, rate in rates[1].items():
        scaled = name.startswith("objective.adversarial.discriminator.")
        assert rates[0][name] == pytest.approx(0.01 * rate if scaled else rate), name


def test_a_network_without_layers_has_no_decay_of_layers() -> None:
    student = trainable()
    student.network = torch.nn.Linear(1, 1)
    with pytest.raises(UsageError, match="does not define layers"):
        build_optimizer(student, OptimizerConfig(layer_decay=0.5))


def test_the_learning_rate_falls_at_the_milestones(images: Path, tmp_path: Path) -> None:
    schedule = {"name": "multistep", "milestones": [0.5], "decay": 0.1, "warmup": 0}
    fields: dict[str, Any] = {"optimizer": {"lr": 0.01}, "schedule": schedule, "epochs": 4}
    train_student(config(tmp_path / "run", images, **fields))
    rates = [e["lr"] for e in read_journal(tmp_path / "run") if e["event"] == "epoch"]
    assert rates == pytest.approx([0.01, 0.001, 0.001, 0.001])


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({"name": "multistep"}, "needs milestones"),
        ({"name": "cosine", "milestones": [0.5]}, "cosine has no milestones"),
        ({"name": "multistep", "milestones": [1.5]}, "less than 1"),
    ],
)
def test_milestones_belong_to_multistep(schedule: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ScheduleConfig.parse(schedule, "schedule")


def test_a_student_with_captured_layers_is_not_compiled(tmp_path: Path) -> None:
    match = {"match": {"teacher": "cnn", "tap": "layer1", "student": "blocks.0"}}
    values: dict[str, Any] = {"out": str(tmp_path), "data": "x", "cache": "c", "student": VIT}
    with pytest.raises(UsageError, match="remove compile"):
        TrainConfig.parse({**values, "epochs": 1, "compile": True, "objectives": [match]}, "train")


def test_compilation_without_a_compiler_is_one_clear_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(UsageError, match=r"C\+\+ compiler[\s\S]*remove compile"):
        compiled(torch.nn.Linear(1, 1), torch.device("cpu"))


def test_a_compiled_run_resumes_exactly(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the graphs of torch.compile, run without a compiler."""
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model: compile_(model, backend="aot_eager"))
    monkeypatch.setattr(shutil, "which", lambda name: name)
    resumes_exactly(tmp_path, images, compile=True, student=PLAIN_VIT)
    plain = tmp_path / "plain"
    train_student(config(plain, images, student=PLAIN_VIT))
    ours, theirs = weights(plain), weights(tmp_path / "whole")
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-4)


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_a_student_is_compiled_by_the_compiler_of_this_machine() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.GELU())
    x = torch.randn(3, 4)
    run = compiled(network, torch.device("cpu"))
    torch.testing.assert_close(run(x), network(x))


def test_weights_of_parts_are_shares_of_the_rows_of_each_term() -> None:
    """A term over the labeled rows and one over all, whose weights differ."""
    z = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, -1, -1, -1, 1, 2])
    teacher = DenseLogits(torch.randn(6, 3).log_softmax(1))
    batch = TargetBatch(torch.arange(6), labels, {"t": teacher})
    objective = build_objective([ObjectiveConfig.model_validate(n) for n in ("label", "soft")])
    whole, counts = objective.parts(z, batch), objective.counts(batch)
    for name, expected in whole.items():
        total = 0.0
        for rows in part_rows(6, 1, 3):
            own = batch.take(rows)
            share = float(objective.counts(own)[name]) / float(counts[name])
            total += share * float(objective.parts(z[rows], own)[name])
        assert total == pytest.approx(float(expected), rel=1e-6)
