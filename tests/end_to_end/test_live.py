"""The control of every result: live teachers say what the cache says, but for storage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from logitcache.batch import DenseLogits
from logitcache.cli.interrupt import StopRequest
from logitcache.cli.stages import stage_runner
from logitcache.objectives.combine import build_objective
from logitcache.pipeline.config import PipelineConfig
from logitcache.pipeline.run import Pipeline
from logitcache.targets.loader import Loader
from logitcache.targets.settings import LoaderSettings
from logitcache.training.config import TrainConfig
from logitcache.training.images import training_images
from logitcache.training.run.journal import read_journal
from tests.benchmarks.live import LiveTeachers, train_live, twin_loader
from tests.benchmarks.systems import interval

if TYPE_CHECKING:
    from pathlib import Path

BATCH = 7
STUDENT: dict[str, Any] = {
    "model": "vit_tiny_patch16_224",
    "kwargs": {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2},
}


@pytest.fixture
def pipeline(images: Path, teachers: dict[str, Any], tmp_path: Path) -> Pipeline:
    """Return a pipeline whose cache holds answers of two teachers and two taps of one."""
    red = {**teachers["red"], "features": {"stem": {"tokens": 6}, "layer1": {"values": "float16"}}}
    values = {
        "name": "live",
        "out": str(tmp_path),
        "data": str(images),
        "train": {"batch_size": BATCH, "threads": 1, "device": "cpu"},
        "stages": [
            {
                "name": "cache",
                "precompute": {
                    "teachers": {"cnn": teachers["cnn"], "red": red},
                    "views": {"count": 1},
                    "encoding": {"kind": "dense"},
                },
            },
            {
                "name": "student",
                "train": {
                    "student": STUDENT,
                    "cache": "stage:cache",
                    "epochs": 2,
                    "objectives": [
                        "soft",
                        {"match": {"teacher": "red", "tap": "layer1", "student": "blocks.0"}},
                    ],
                },
            },
        ],
    }
    made = Pipeline(PipelineConfig.parse(values, "live"))
    with StopRequest() as stop:
        made.run(stage_runner(stop))
    return made


def test_live_teachers_say_what_the_cache_says(pipeline: Pipeline) -> None:
    cache, student = pipeline.stages
    kept = {"match": {"teacher": "red", "tap": "stem", "student": "blocks.0"}}
    objectives = [*student.values["objectives"], kept]
    config = TrainConfig.parse({**student.values, "objectives": objectives}, "student")
    needs = build_objective(config.terms).needs
    live = LiveTeachers(cache, needs, twin_loader(config))
    rows, targets = training_images(config, needs)
    settings = LoaderSettings(BATCH, size=8, seed=config.seed, threads=1)
    with Loader(rows, settings, targets=targets) as loader:
        for _ in range(2):
            for images, cached in loader:
                outputs = live(images, cached)
                assert outputs.teachers.keys() == cached.teachers.keys() == {"cnn", "red"}
                for name, answer in outputs.teachers.items():
                    stored = cached.teachers[name]
                    assert isinstance(answer, DenseLogits)
                    assert isinstance(stored, DenseLogits)
                    torch.testing.assert_close(
                        answer.log_probs, stored.log_probs, rtol=2e-3, atol=2e-3
                    )
                for name, held in outputs.features.items():
                    torch.testing.assert_close(
                        held.values, cached.features[name].values, rtol=2e-3, atol=2e-3
                    )
                positions = outputs.features["red/stem"].positions
                stored_positions = cached.features["red/stem"].positions
                assert positions is not None
                assert stored_positions is not None
                assert positions.equal(stored_positions)
    live.close()


@pytest.mark.parametrize("fresh_views", [False, True])
def test_a_student_of_live_teachers_learns_alike(pipeline: Pipeline, fresh_views: bool) -> None:
    result = train_live(pipeline, "student", fresh_views=fresh_views)
    live, cached = read_journal(pipeline.out / result.out), read_journal(pipeline.out / "student")
    first, second = (
        ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
        for ours, theirs in zip(live, cached, strict=True)
    )
    assert first  # one view is cached, and the first fresh one is that
    assert second is not fresh_views


def test_the_interval_is_that_of_resampled_images() -> None:
    random = np.random.default_rng(1)
    mine, theirs = random.random(2000) < 0.7, random.random(2000) < 0.6
    drawn = random.integers(2000, size=(4000, 2000))
    means = 100 * (mine[drawn].mean(1) - theirs[drawn].mean(1))
    difference, low, high = interval(mine, theirs)
    assert difference == pytest.approx(100 * (mine.mean() - theirs.mean()))
    assert [low, high] == pytest.approx(np.quantile(means, (0.025, 0.975)), abs=0.25)
