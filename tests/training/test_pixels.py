"""Students that are shown other views than their targets are of, with pixels as a target."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from logitcache.data.readers import open_source
from logitcache.errors import Interrupted, UsageError
from logitcache.networks.build import NetworkConfig, build_network, input_spec
from logitcache.precompute.build import build_cache
from logitcache.precompute.config import PrecomputeConfig
from logitcache.training.config import TrainConfig
from logitcache.training.evaluation.evaluate import EvaluateConfig, evaluate_network
from logitcache.training.evaluation.evaluator import Evaluator
from logitcache.training.loop import train_student
from tests.training.test_loop import assert_equal_runs, stop_after, weights

if TYPE_CHECKING:
    from pathlib import Path

VIT: dict[str, Any] = {
    "model": "vit_tiny_patch16_224",
    "kwargs": {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2},
}
LOW = {"student": "lowres(2)", "targets": "base"}


@pytest.fixture(scope="module")
def cache(images: Path, teachers: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pixels") / "cache"
    values = {"cache": str(path), "data": str(images), "teachers": teachers, "unit_rows": 16}
    build_cache(PrecomputeConfig.parse({**values, "views": {"count": 2}}, ""))
    return path


def config(out: Path, images: Path, cache: Path, **fields: Any) -> TrainConfig:
    match = {"against": "pixels", "student": "blocks.0", "projector": "pixel-shuffle"}
    values = {
        "out": str(out),
        "data": str(images),
        "cache": str(cache),
        "student": VIT,
        "show": LOW,
        "objectives": ["soft", {"match": {**match, "metric": "l1", "weight": 5}}],
        "steps": 6,
        "batch_size": 16,
        "crop_pct": 1.0,
        "threads": 1,
        **fields,
    }
    return TrainConfig.parse(values, "train")


def test_a_run_resumes_with_its_projector(images: Path, cache: Path, tmp_path: Path) -> None:
    train_student(config(tmp_path / "whole", images, cache))
    with pytest.raises(Interrupted):
        train_student(config(tmp_path / "parts", images, cache), should_stop=stop_after(3))
    train_student(config(tmp_path / "parts", images, cache), resume=True)
    assert_equal_runs(tmp_path / "parts", tmp_path / "whole")


def test_parts_of_a_batch_have_the_gradient_of_the_whole(
    images: Path, cache: Path, tmp_path: Path
) -> None:
    for name, parts in (("whole", 1), ("parts", 3)):
        train_student(config(tmp_path / name, images, cache, accumulate=parts, show=["base", LOW]))
    ours, theirs = weights(tmp_path / "parts"), weights(tmp_path / "whole")
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-4) for name in ours)


def test_a_student_of_low_resolution_is_evaluated_at_it(
    images: Path, cache: Path, tmp_path: Path
) -> None:
    """The run, the evaluation of its export, and the model card agree."""
    fields = {"val": str(images), "val_view": "lowres(2)"}
    result = train_student(config(tmp_path, images, cache, **fields))
    folder = f"local-dir:{tmp_path / 'export'}"
    spec = replace(input_spec(build_network(NetworkConfig(model=folder))), crop_pct=1.0)
    found = {}
    for view in ("base", "lowres(2)"):
        evaluator = Evaluator(
            open_source(str(images)),
            spec,
            batch_size=16,
            device=torch.device("cpu"),
            threads=1,
            view=view,
        )
        found[view] = evaluator(build_network(NetworkConfig(model=folder)))
        evaluator.close()
    assert found["lowres(2)"] == result.evaluation
    assert found["base"] != result.evaluation
    values = {"network": {"model": folder}, "data": str(images), "threads": 1, "batch_size": 16}
    whole = evaluate_network(EvaluateConfig.parse({**values, "view": "lowres(2)"}, ""))
    assert whole.evaluation == result.evaluation
    assert "images as `lowres(2)`." in (tmp_path / "export" / "README.md").read_text()


def test_views_of_validation_have_a_known_name(images: Path, cache: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown derived view 'lowres'"):
        config(tmp_path, images, cache, val_view="lowres")
