"""Students of images whose teachers saw restyled copies, with pseudo labels for a part of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import timm
import torch

from logitcache.cache.read.reader import open_cache
from logitcache.errors import DataMismatch, Interrupted, UsageError
from logitcache.precompute.build import build_cache
from logitcache.precompute.config import PrecomputeConfig
from logitcache.tools.synthesize import SynthesizeConfig, synthesize
from logitcache.training.config import TrainConfig
from logitcache.training.loop import train_student
from tests.conftest import write_images, write_teacher

if TYPE_CHECKING:
    from pathlib import Path

OBJECTIVES = [
    {"label": {"parts": ["source"]}},
    {"label": {"parts": ["target"], "pseudo": "ema", "above": 0.34}},
    {"gap": {"parts": ["source", "restyled"], "weight": 2}},
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return labeled and unlabeled images in two styles, and a cache of the latter as copies."""
    root = tmp_path_factory.mktemp("styles")
    labeled = str(write_images(root / "a", 8))
    unlabeled = {"name": str(write_images(root / "b", 6)), "unlabeled": True}
    for name, data, tone in (
        ("source", labeled, [0, 1]),
        ("restyled", labeled, [1, 0]),
        ("target", unlabeled, [1, 0]),
        ("target-restyled", unlabeled, [0, 1]),
    ):
        values = {"data": data, "out": str(root / name), "tone": tone}
        synthesize(SynthesizeConfig.parse(values, "synthesize"))
    write_teacher(root / "ema", classes=3, model="cnn")
    values = {
        "cache": str(root / "cache"),
        "data": joined(root, "target-restyled"),
        "teachers": {"ema": {"model": f"local-dir:{root}/ema", "class_map": "position"}},
        "views": {"count": 2},
    }
    build_cache(PrecomputeConfig.parse(values, ""))
    return root


def joined(root: Path, target: str) -> dict[str, Any]:
    parts = {"source": "source", "restyled": "restyled", "target": target}
    return {"parts": {name: str(root / folder) for name, folder in parts.items()}}


def config(root: Path, out: Path, **fields: Any) -> TrainConfig:
    values = {
        "out": str(out),
        "data": joined(root, "target"),
        "cache": str(root / "cache"),
        "counterparts": True,
        "student": {"model": f"local-dir:{root}/ema", "size": 8},
        "objectives": OBJECTIVES,
        "ema": 0.9,
        "epochs": 2,
        "batch_size": 22,
        "device": "cpu",
        "threads": 1,
        "checkpoint_every": 100,
    }
    return TrainConfig.parse({**values, **fields}, "")


def weights(out: Path) -> dict[str, torch.Tensor]:
    network = timm.create_model(f"local-dir:{out}/export", pretrained=True)
    return dict(network.state_dict())


def test_other_images_are_refused_unless_they_are_counterparts(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataMismatch):
        train_student(config(root, tmp_path / "a", counterparts=False))
    assert train_student(config(root, tmp_path / "b")).images == 2 * 66
    with pytest.raises(UsageError, match="counterparts are images with the keys of a cache"):
        config(root, tmp_path / "c", data=None)
    lacking = {"parts": {**joined(root, "target")["parts"], "target": str(root / "b")}}
    with pytest.raises(DataMismatch, match="not the images the cache was made from"):
        train_student(config(root, tmp_path / "d", data=lacking))


def test_images_of_the_target_have_no_label(root: Path) -> None:
    samples = open_cache(str(root / "cache")).samples
    of_target = [key.startswith("target/") for key in samples.keys.tolist()]
    labels = samples.labels[samples.rows]
    assert len(of_target) == 66
    assert [int(label) for label, own in zip(labels, of_target, strict=True) if own] == [-1] * 18
    assert all(label >= 0 for label, own in zip(labels, of_target, strict=True) if not own)


def test_the_student_is_shown_its_own_images(root: Path, tmp_path: Path) -> None:
    """With the copies in place of the images, a run on them ends with other weights."""
    train_student(config(root, tmp_path / "real"))
    train_student(config(root, tmp_path / "copies", data=joined(root, "target-restyled")))
    ours, theirs = weights(tmp_path / "real"), weights(tmp_path / "copies")
    assert any(not torch.equal(value, theirs[name]) for name, value in ours.items())


def test_a_stopped_generation_continues_to_the_same_weights(root: Path, tmp_path: Path) -> None:
    train_student(config(root, tmp_path / "whole"))
    seen: list[int] = []

    def stop() -> bool:
        seen.append(1)
        return len(seen) == 4

    with pytest.raises(Interrupted):
        train_student(config(root, tmp_path / "cut"), should_stop=stop)
    train_student(config(root, tmp_path / "cut"), resume=True)
    expected = weights(tmp_path / "whole")
    assert all(torch.equal(v, expected[name]) for name, v in weights(tmp_path / "cut").items())


@pytest.mark.parametrize("term", [{"label": {}}, {"split": {}}, {"label": {"head": "fc"}}])
def test_a_term_on_labels_of_images_without_any_is_refused(
    root: Path, tmp_path: Path, term: dict[str, dict[str, Any]]
) -> None:
    """Of a part without labels, and not where another part has them."""
    ((name, options),) = term.items()
    terms = [{name: {**options, "parts": ["target"]}}, OBJECTIVES[1]]
    with pytest.raises(UsageError, match=rf"{name} learns from labels, and no image of the parts"):
        train_student(config(root, tmp_path / "run", objectives=terms))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_part_without_images_is_named(root: Path, tmp_path: Path) -> None:
    objectives = [{"label": {"parts": ["sourec"]}}]
    with pytest.raises(UsageError, match=r"no image is in a part 'sourec'"):
        train_student(config(root, tmp_path / "run", objectives=objectives))
