"""Heads that are trained on cached vectors, without opening an image."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest
import timm
import torch

from logitcache.errors import Interrupted, UsageError
from logitcache.precompute.build import build_cache
from logitcache.precompute.config import PrecomputeConfig
from logitcache.tools.class_means import ClassMeansConfig, class_means
from logitcache.training.config import TrainConfig
from logitcache.training.loop import train_student
from tests.conftest import write_images, write_teacher
from tests.processes import run_ranks
from tests.training.test_ranks import train

if TYPE_CHECKING:
    from pathlib import Path

EPOCHS, STEPS = 3, 12  # 60 images in batches of 16, 16, 16 and 12


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a teacher, its cache and a table, whose images no longer exist."""
    root = tmp_path_factory.mktemp("heads")
    images, teacher = write_images(root / "images", 20), root / "t"
    write_teacher(teacher, classes=3, model="cnn")
    features = {"pre_logits": {}, "layer1": {"reduce": "mean"}, "layer4": {}}
    teachers = {"t": {"model": f"local-dir:{teacher}", "features": features}}
    values = {"cache": str(root / "cache"), "data": str(images), "teachers": teachers}
    build_cache(PrecomputeConfig.parse({**values, "views": {"count": 2}, "unit_rows": 16}, ""))
    means = {
        "cache": str(root / "cache"),
        "feature": "t/pre_logits",
        "out": str(root / "table.npz"),
    }
    class_means(ClassMeansConfig.parse({**means, "out": f"{root}/t.safetensors"}, ""))
    shutil.rmtree(images)
    return root


def config(root: Path, out: Path, **fields: Any) -> dict[str, Any]:
    student = {
        "model": f"local-dir:{root}/t",
        "head_on": "t/pre_logits",
        "surgery": {"adapter": {"table": f"{root}/t.safetensors", "scale": 20}},
    }
    return {
        "out": str(out),
        "data": str(root / "images"),
        "cache": str(root / "cache"),
        "student": {**student, **fields.pop("student", {})},
        "objectives": [
            {"episode": {"student": "adapter", "scale": 20}},
            {"soft": {"temperature": 5}},
        ],
        "epochs": EPOCHS,
        "batch_size": 16,
        "device": "cpu",
        "threads": 1,
        "checkpoint_every": 100,
        **fields,
    }


def run(values: dict[str, Any], **options: Any) -> Any:
    return train_student(TrainConfig.parse(values, ""), **options)


def weights(out: Path) -> dict[str, torch.Tensor]:
    network = timm.create_model(f"local-dir:{out}/export", pretrained=True)
    return dict(network.state_dict())


def test_a_head_is_trained_without_any_image(root: Path, tmp_path: Path) -> None:
    """The folder of the images is gone; the network before the head keeps its weights."""
    result = run(config(root, tmp_path / "run"))
    assert result.steps == STEPS
    assert result.images == EPOCHS * 60
    assert not (root / "images").exists()
    before = timm.create_model(f"local-dir:{root}/t", pretrained=True).state_dict()
    after = weights(tmp_path / "run")
    trunk = {name: value for name, value in before.items() if not name.startswith("fc.")}
    assert all(torch.equal(after[name], value) for name, value in trunk.items())
    assert after["fc.adapter.share"].item() != 0.5


def test_losses_are_those_of_the_network_on_the_images(root: Path, tmp_path: Path) -> None:
    """The first loss on cached vectors, and that of the whole network on the same views."""
    images = write_images(tmp_path / "images", 20)
    values = config(root, tmp_path / "vectors", steps=1, epochs=None)
    run(values)
    whole = {**values, "out": str(tmp_path / "images-run"), "data": str(images)}
    student = {**values["student"], "head_on": None}
    objectives = [{"episode": {"student": "fc.adapter", "scale": 20}}, values["objectives"][1]]
    run({**whole, "student": student, "objectives": objectives})
    ours, theirs = weights(tmp_path / "vectors"), weights(tmp_path / "images-run")
    name = "fc.adapter.linear1.weight"
    moved = ours[name] - weights_at_start(root, tmp_path)[name]
    others = theirs[name] - weights_at_start(root, tmp_path)[name]
    cosine = torch.nn.functional.cosine_similarity(moved.flatten(), others.flatten(), dim=0)
    assert cosine > 0.99, "equal up to the coding of cached vectors"


def weights_at_start(root: Path, tmp_path: Path) -> dict[str, torch.Tensor]:
    """Return the weights before any step: those of a run with a vanishing learning rate."""
    out = tmp_path / "start"
    if not out.exists():
        run(config(root, out, steps=1, epochs=None, optimizer={"lr": 1e-30}))
    return weights(out)


def test_a_stopped_run_continues_to_the_same_weights(root: Path, tmp_path: Path) -> None:
    run(config(root, tmp_path / "whole"))
    seen: list[int] = []

    def stop() -> bool:
        seen.append(1)
        return len(seen) == 6

    with pytest.raises(Interrupted):
        run(config(root, tmp_path / "cut"), should_stop=stop)
    run(config(root, tmp_path / "cut"), resume=True)
    expected = weights(tmp_path / "whole")
    assert all(torch.equal(v, expected[name]) for name, v in weights(tmp_path / "cut").items())


def test_two_processes_train_the_same_head(root: Path, tmp_path: Path) -> None:
    """Without episodes, which are those of one process."""
    objectives = ["label", {"soft": {"temperature": 5}}]
    run(config(root, tmp_path / "one", objectives=objectives))
    run_ranks(2, train, config(root, tmp_path / "two", objectives=objectives))
    expected = weights(tmp_path / "one")
    for name, value in weights(tmp_path / "two").items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-5)


def test_a_linear_probe_is_trained_on_vectors_too(root: Path, tmp_path: Path) -> None:
    values = config(root, tmp_path / "run", objectives=["label"])
    student = {**values["student"], "surgery": {"probe": {"normalize": True}}}
    assert run({**values, "student": student}).steps == STEPS
    assert weights(tmp_path / "run")["fc.weight"].shape == (3, 16)


@pytest.mark.parametrize(
    ("student", "message"),
    [
        ({"head_on": "t/layer4"}, "these features are maps or tokens"),
        ({"head_on": "t/layer3"}, "layer3"),
        (
            {"model": "resnet10t", "kwargs": {"channels": [16] * 4}},
            "other weights than the teacher",
        ),
    ],
)
def test_other_vectors_and_other_networks_are_refused(
    student: dict[str, Any], message: str, root: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        run(config(root, tmp_path / "run", student=student))


@pytest.mark.parametrize(
    "fields", [{"cache": None}, {"channels_last": True}, {"size": {"start": 8}}]
)
def test_settings_of_images_are_refused(fields: dict[str, Any], root: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"head_on trains on"):
        run(config(root, tmp_path / "run", **fields))


@pytest.mark.parametrize(
    "surgery",
    [
        {"fake_quant": 4},
        {"depth": {"every": 2}},
        {"lora": {"rank": 2}},
        {"branches": {"at": ["layer1"], "classes": "x1"}},
    ],
)
def test_a_surgery_before_the_classifier_is_refused(surgery: dict[str, Any], root: Path) -> None:
    """The cached vectors would not be those of the network that is evaluated and exported."""
    values = config(root, root / "run")
    student = {**values["student"], "surgery": surgery}
    with pytest.raises(UsageError, match=f"without the surgery {next(iter(surgery))}"):
        TrainConfig.parse({**values, "student": student}, "train")


def test_a_loss_that_trains_nothing_is_refused(root: Path, tmp_path: Path) -> None:
    """The cached vectors are compared with themselves: no weight is between them."""
    match = {"match": {"teacher": "t", "tap": "pre_logits", "projector": "none"}}
    student = {"model": f"local-dir:{root}/t", "head_on": "t/pre_logits", "surgery": {}}
    values = {**config(root, tmp_path / "run", objectives=[match]), "student": student}
    with pytest.raises(UsageError, match="depends on no weight that is trained"):
        run(values)
