"""Teachers of torchvision, of a user, and exported programs, from precompute to training."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torchvision

from logitcache.cache.read.reader import open_cache
from logitcache.check.audit import audit_teachers
from logitcache.data.readers import open_source
from logitcache.errors import CacheError, UsageError
from logitcache.networks.taps import OUTPUT
from logitcache.precompute.build import build_cache
from logitcache.precompute.plan.teacher_lock import as_locked
from logitcache.targets.loader import loader
from logitcache.teachers.member import TeacherConfig
from logitcache.training.config import TrainConfig
from logitcache.training.loop import train_student
from tests.networks.user_networks import (
    HALF,
    INPUT,
    QUARTER,
    load,
    write_exported,
    write_module,
    write_torchscript,
)
from tests.precompute.test_building import config

if TYPE_CHECKING:
    from pathlib import Path

MODULE = "user_of_other_forms"


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the code of a user, programs made from it, and weights."""
    folder = tmp_path_factory.mktemp("networks")
    network = load(write_module(folder, MODULE)).tiny()
    write_exported(network, folder / "tiny.pt2")
    write_exported(network, folder / "fixed.pt2", dynamic=False)
    write_torchscript(network, folder / "tiny.torchscript")
    torch.manual_seed(0)
    reference = torchvision.models.get_model("shufflenet_v2_x0_5", weights=None, num_classes=3)
    torch.save(reference.state_dict(), folder / "shuffle.pth")
    return folder


@pytest.fixture
def _here(networks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(networks)
    monkeypatch.setattr(sys, "path", list(sys.path))


def teachers() -> dict[str, dict[str, Any]]:
    return {
        "own": {"model": f"{MODULE}:tiny"},
        "exported": {"model": "tiny.pt2", "mean": HALF, "std": QUARTER},
        "fixed": {"model": "fixed.pt2", "mean": HALF, "std": QUARTER},
        "traced": {"model": "tiny.torchscript", **INPUT},
        "shuffle": {
            "model": "torchvision/shufflenet_v2_x0_5",
            "weights": "shuffle.pth",
            "size": 32,
        },
        "embedding": {
            "model": f"{MODULE}:embedding",
            "head": "none",
            "features": {OUTPUT: {}},
        },
    }


@pytest.fixture(scope="module")
def built(networks: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = tmp_path_factory.mktemp("other-forms") / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(networks)
        patch.setattr(sys, "path", list(sys.path))
        summary = build_cache(config(cache, images, teachers()))
    notes = [note for note in summary.notes if "exported for batches of 4" in note]
    assert [note.partition(":")[0] for note in notes] == ["teacher fixed"]
    return cache


def test_the_outputs_are_those_of_the_networks(built: Path, networks: Path, images: Path) -> None:
    reference = load(networks / f"{MODULE}.py")
    network, embedding = reference.tiny().eval(), reference.embedding()[0].eval()
    cache = open_cache(built)
    batches = loader(
        cache,
        str(images),
        batch_size=10,
        size=8,
        teachers=["own", "exported", "fixed", "traced"],
        features=[f"embedding/{OUTPUT}"],
        mean=HALF,
        std=QUARTER,
    )
    for pixels, targets in batches:
        with torch.no_grad():
            expected = network(pixels).log_softmax(1)
            found = targets.features[f"embedding/{OUTPUT}"].values
            torch.testing.assert_close(found, embedding(pixels), rtol=2e-3, atol=2e-3)
        for teacher in targets.teachers.values():
            torch.testing.assert_close(teacher.log_probs, expected, rtol=2e-3, atol=2e-3)


def test_the_network_of_torchvision_is_normalized_as_torchvision_does(
    built: Path, networks: Path, images: Path
) -> None:
    network = torchvision.models.get_model("shufflenet_v2_x0_5", weights=None, num_classes=3).eval()
    network.load_state_dict(torch.load(networks / "shuffle.pth"))
    preset: Any = torchvision.models.get_model_weights("shufflenet_v2_x0_5").DEFAULT.transforms()
    batches = loader(
        open_cache(built), str(images), size=32, teachers=["shuffle"], mean=(0, 0, 0), std=(1, 1, 1)
    )
    normalize = torchvision.transforms.Normalize(preset.mean, preset.std)
    for pixels, targets in batches:
        with torch.no_grad():
            expected = network(normalize(pixels)).log_softmax(1)
        found = targets.teachers["shuffle"].log_probs
        torch.testing.assert_close(found, expected, rtol=5e-3, atol=5e-3)


@pytest.mark.usefixtures("_here")
def test_verify_takes_the_input_from_the_lock(built: Path, images: Path) -> None:
    given: dict[str, dict[str, Any]] = {
        name: {key: values[key] for key in ("model", "weights") if key in values}
        for name, values in teachers().items()
    }
    audits = audit_teachers(str(built), open_source(str(images)), given, samples=40)
    assert [audit.ok for audit in audits] == [True] * 6
    assert audits[-1].taps == {OUTPUT: 40}


@pytest.mark.usefixtures("_here")
def test_other_code_is_another_teacher(built: Path, networks: Path, images: Path) -> None:
    """Also where it computes the same, since that is not known of code."""
    path = networks / f"{MODULE}.py"
    source = path.read_text()
    path.write_text(source + "\n# a comment\n")
    try:
        with pytest.raises(CacheError, match="another teacher named 'own'") as caught:
            build_cache(config(built, images, {"own": teachers()["own"]}))
    finally:
        path.write_text(source)
    assert "code_sha256" in str(caught.value.expected)


def test_arguments_of_a_cache_are_not_passed_to_code_of_the_user(built: Path) -> None:
    """A cache may come from anybody."""
    record = open_cache(built).manifest.teachers["own"]
    locked = record.model_copy(update={"lock": {**record.lock, "kwargs": {"classes": 9}}}).locked
    assert as_locked(TeacherConfig(model=f"{MODULE}:tiny"), locked).kwargs == {}
    assert as_locked(TeacherConfig(model="torchvision/resnet18"), locked).kwargs == {}
    assert as_locked(TeacherConfig(model="resnet18"), locked).kwargs == {"classes": 9}


@pytest.mark.usefixtures("_here")
def test_features_of_a_program_are_refused_before_anything_is_computed(
    images: Path, tmp_path: Path
) -> None:
    requested = {"exported": {**teachers()["exported"], "features": {"program.body": {}}}}
    with pytest.raises(UsageError, match="layers of an exported program cannot be captured"):
        build_cache(config(tmp_path / "c", images, requested))


@pytest.mark.usefixtures("_here")
def test_an_output_that_is_no_tensor_is_refused(images: Path, tmp_path: Path) -> None:
    requested: dict[str, Any] = {
        "w": {"model": f"{MODULE}:wordy", "head": "none", "features": {OUTPUT: {}}}
    }
    with pytest.raises(UsageError, match="tap 'output' does not return a tensor"):
        build_cache(config(tmp_path / "c", images, requested))


def test_a_student_learns_from_all_of_them(built: Path, images: Path, tmp_path: Path) -> None:
    values = {
        "out": str(tmp_path / "run"),
        "data": str(images),
        "cache": str(built),
        "student": {
            "model": "resnet10t",
            "kwargs": {"channels": [16, 16, 16, 16], "stem_width": 16},
            "size": 16,
        },
        "objectives": [
            "soft",
            {
                "match": {
                    "teacher": "embedding",
                    "tap": OUTPUT,
                    "student": "pre_logits",
                    "projector": "linear",
                }
            },
        ],
        "steps": 3,
        "batch_size": 20,
        "threads": 1,
    }
    train_student(TrainConfig.parse(values, "train"))
    assert (tmp_path / "run" / "export" / "model.safetensors").is_file()
