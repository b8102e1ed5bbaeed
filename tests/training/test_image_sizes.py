"""Image sizes that grow over the epochs of a training run."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from logitcache.batch import Features
from logitcache.errors import Interrupted, UsageError
from logitcache.objectives.combine import ObjectiveConfig, build_objective
from logitcache.precompute.build import build_cache
from logitcache.precompute.config import PrecomputeConfig
from logitcache.training.config import SizeConfig, TrainConfig
from logitcache.training.loop import train_student
from logitcache.training.optimization.image_sizes import ImageSizes
from logitcache.training.optimization.trainable_student import TrainableStudent
from logitcache.training.run.journal import read_journal
from tests.training.test_loop import assert_equal_runs, config, stop_after

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from logitcache.training.hooks import Step

Teachers = dict[str, dict[str, Any]]

GROWING = {"start": 8, "end": 16, "multiple": 4}
VIT = {
    "model": "vit_tiny_patch16_224",
    "size": 16,
    "kwargs": {
        "img_size": 16,
        "patch_size": 4,
        "embed_dim": 16,
        "depth": 2,
        "num_heads": 2,
        "dynamic_img_size": True,
    },
}


@pytest.fixture(scope="module")
def cache(images: Path, teachers: Teachers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sizes") / "cache"
    red = {**teachers["red"], "features": {"layer1": {}}}
    values = {"cache": str(path), "data": str(images), "teachers": {"red": red}, "unit_rows": 16}
    build_cache(PrecomputeConfig.parse({**values, "views": {"count": 2}}, ""))
    return path


class Seen:
    """What every step was given."""

    def __init__(self) -> None:
        self.sizes: list[tuple[int, int]] = []
        self.rows: list[Tensor] = []
        self.log_probs: list[Tensor] = []

    def on_step(self, step: Step) -> None:
        self.sizes.append((step.epoch, step.images.shape[-1]))
        self.rows.append(step.targets.rows)
        self.log_probs += [each.log_probs for each in step.targets.teachers.values()]

    def on_epoch(self, epoch: int) -> None:
        """Needed by the protocol."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert not state


def sizes_of(start: int, end: int, multiple: int, epochs: int, final: float) -> list[int]:
    settings = SizeConfig(start=start, end=end, multiple=multiple, final=final)
    found = ImageSizes.of(settings, nn.Identity(), end=end, epochs=epochs)
    return [found.at(epoch) for epoch in range(epochs)]


def test_the_epochs_before_the_final_ones_are_divided_equally() -> None:
    assert sizes_of(128, 224, 32, 10, 0.2) == [128] * 3 + [160] * 3 + [192] * 2 + [224] * 2
    assert sizes_of(128, 224, 32, 4, 0.0) == [128, 160, 192, 224]
    assert sizes_of(128, 224, 32, 3, 1.0) == [224] * 3
    assert sizes_of(128, 224, 32, 1, 0.0) == [224]
    assert sizes_of(224, 224, 32, 3, 0.0) == [224] * 3


@given(
    st.integers(1, 20), st.integers(0, 6), st.integers(1, 40), st.integers(1, 50), st.floats(0, 1)
)
def test_sizes_never_shrink_and_end_with_the_last_one(
    start: int, steps: int, multiple: int, epochs: int, final: float
) -> None:
    end = start + steps * multiple
    found = sizes_of(start, end, multiple, epochs, final)
    assert all(before <= after for before, after in pairwise(found))
    assert found[-1] == end
    assert all((end - size) % multiple == 0 and start <= size <= end for size in found)
    assert sum(size == end for size in found) >= int(final * epochs)
    if epochs - int(final * epochs) > 2 * steps:  # room for every size
        assert set(found) == set(range(start, end + 1, multiple))


@pytest.mark.parametrize(
    ("model", "multiple"), [("vit_tiny_patch16_224", 32), ("vit_small_patch14_dinov2", 14)]
)
def test_the_default_step_fits_the_patches(model: str, multiple: int) -> None:
    network = timm.create_model(model, depth=1, embed_dim=6, num_heads=1, img_size=10 * multiple)
    found = ImageSizes.of(SizeConfig(start=8 * multiple), network, end=10 * multiple, epochs=9)
    assert found.sizes == [8 * multiple, 9 * multiple, 10 * multiple]


def test_a_run_grows_and_its_targets_stay(images: Path, cache: Path, tmp_path: Path) -> None:
    grown, plain = Seen(), Seen()
    fields: dict[str, object] = {"cache": str(cache), "student": VIT, "epochs": 4}
    result = train_student(
        config(tmp_path / "a", images, **fields, size=GROWING), hooks={"seen": grown}
    )
    train_student(config(tmp_path / "b", images, **fields), hooks={"seen": plain})
    assert grown.sizes == [(e, s) for e, s in enumerate([8, 8, 12, 16]) for _ in range(4)]
    assert {size for _, size in plain.sizes} == {16}
    for ours, theirs in ((grown.rows, plain.rows), (grown.log_probs, plain.log_probs)):
        assert len(ours) == len(theirs) == 16
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    (note,) = result.notes
    assert "8 pixels from epoch 0, 12 pixels from epoch 2, 16 pixels from epoch 3" in note
    assert [event["size"] for event in read_journal(tmp_path / "a")] == [8, 8, 12, 16]
    assert "size" not in read_journal(tmp_path / "b")[0]
    exported = json.loads((tmp_path / "a" / "export" / "config.json").read_text())
    assert exported["pretrained_cfg"]["input_size"] == [3, 16, 16]


@pytest.mark.parametrize("stops", [[2], [4], [8], [9, 2]])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_resumed_run_is_the_very_same_over_a_change_of_size(
    images: Path, cache: Path, tmp_path: Path, stops: list[int], workers: int
) -> None:
    """Stopped inside of an epoch, and after the last batch before the size changes."""
    if workers and stops != [9, 2]:
        pytest.skip("one case is enough for child processes")
    fields: dict[str, object] = {
        "cache": str(cache),
        "student": {**VIT, "kwargs": {**VIT["kwargs"], "drop_path_rate": 0.2}},  # type: ignore[dict-item]
        "epochs": 4,
        "size": GROWING,
    }
    train_student(config(tmp_path / "whole", images, **fields))
    for index, steps in enumerate(stops):
        with pytest.raises(Interrupted):
            train_student(
                config(tmp_path / "cut", images, **fields, workers=workers),
                resume=index > 0,
                should_stop=stop_after(steps),
            )
    train_student(config(tmp_path / "cut", images, **fields), resume=True)
    assert_equal_runs(tmp_path / "whole", tmp_path / "cut")


def test_cached_maps_are_compared_at_every_size(images: Path, cache: Path, tmp_path: Path) -> None:
    match = {"teacher": "red", "tap": "layer1", "student": "blocks.0", "projector": "linear"}
    fields: dict[str, object] = {"cache": str(cache), "student": VIT, "epochs": 4}
    result = train_student(
        config(tmp_path, images, **fields, size=GROWING, objectives=["soft", {"match": match}])
    )
    assert result.steps == 16
    assert all(event["match"] > 0 for event in read_journal(tmp_path))


class Strips(nn.Module):
    """A network whose tokens are strips of the image: their number depends on its size."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Linear(3, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, images: Tensor) -> Tensor:
        tokens_BLD = self.tokens(images.mean(2)[:, :, ::4].transpose(1, 2))
        logits: Tensor = self.head(tokens_BLD.mean(1))
        return logits


def test_positions_that_fit_at_one_size_only_are_refused() -> None:
    term = {"match": {"teacher": "t", "tap": "x", "student": "tokens", "projector": "linear"}}
    cached = {"t/x": Features(torch.randn(1, 3, 7), "NLC")}
    objective = build_objective([ObjectiveConfig.model_validate(term)])
    student = TrainableStudent(Strips(), objective, size=12, features=cached)
    student.check_size(12)
    with pytest.raises(UsageError, match="do not fit the cached") as caught:
        student.check_size(8)
    assert "images of 8 pixels (size)" in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"size": {**GROWING, "start": 10}}, "16 minus a multiple of 4, such as 12, 8, 4"),
        ({"size": {**GROWING, "multiple": None}}, "16 minus a multiple of 32"),
        ({"size": {**GROWING, "start": 20}}, "smaller than start"),
        ({"size": {"start": 20, "multiple": 4}}, "16 minus a multiple of 4"),
        ({"size": GROWING, "student": {**VIT, "size": 12}}, "differs from student.size"),
        ({"size": {**GROWING, "start": 14, "multiple": 2}}, "dynamic_img_size=true"),
    ],
)
def test_sizes_that_cannot_be_used_are_refused_before_training(
    images: Path, cache: Path, tmp_path: Path, fields: dict[str, Any], problem: str
) -> None:
    student = fields.get("student", VIT)
    with pytest.raises(UsageError) as caught:
        train_student(
            config(tmp_path, images, **{**fields, "cache": str(cache), "student": student})
        )
    assert problem in str(caught.value)
    assert not (tmp_path / "checkpoints").exists()


def test_a_network_of_one_size_is_refused(images: Path, cache: Path, tmp_path: Path) -> None:
    kwargs = {**VIT["kwargs"], "dynamic_img_size": False}  # type: ignore[dict-item]
    with pytest.raises(UsageError, match="does not accept images of this size") as caught:
        train_student(
            config(
                tmp_path,
                images,
                cache=str(cache),
                student={**VIT, "kwargs": kwargs},
                size=GROWING,
            )
        )
    assert "8 pixels" in str(caught.value)
    assert caught.value.hint is not None
    assert "dynamic_img_size" in caught.value.hint


def test_pixel_noise_of_one_size_is_refused(images: Path, tmp_path: Path) -> None:
    views = {"count": 2, "re_prob": 0.5, "re_mode": "pixel", "re_size": 16}
    with pytest.raises(UsageError, match="pixel noise can be rendered at one size only"):
        train_student(config(tmp_path, images, student=VIT, views=views, size=GROWING))


def test_another_schedule_is_another_run(images: Path, cache: Path, tmp_path: Path) -> None:
    fields: dict[str, object] = {"cache": str(cache), "student": VIT}
    train_student(config(tmp_path, images, **fields, epochs=1, size=GROWING))
    with pytest.raises(UsageError, match="different configuration"):
        train_student(config(tmp_path, images, **fields, epochs=1), resume=True)


def test_the_schedule_is_part_of_the_configuration() -> None:
    written = TrainConfig.parse(
        {"out": "o", "data": "d", "student": VIT, "epochs": 2, "size": GROWING}, ""
    )
    assert TrainConfig.parse(written.model_dump(mode="json"), "") == written
