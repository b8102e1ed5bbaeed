"""Training and evaluation on images that may have several classes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from logitcache import DataConfig, open_source
from logitcache.errors import DataError, DataMismatch
from logitcache.networks.build import NetworkConfig, build_network, input_spec
from logitcache.targets.images.image_rows import number_rows
from logitcache.targets.loader import Loader
from logitcache.targets.settings import LoaderSettings
from logitcache.training.config import TrainConfig
from logitcache.training.evaluation.average_precision import mean_average_precision
from logitcache.training.evaluation.evaluate import EvaluateConfig, evaluate_network
from logitcache.training.evaluation.evaluator import eval_views
from logitcache.training.loop import train_student
from logitcache.training.run.journal import read_journal
from logitcache.training.run.result import read_result
from tests.label_set_images import TAGS, sets_of, write_listing
from tests.objectives import reference

if TYPE_CHECKING:
    from logitcache.training.run.result import TrainResult

STUDENT = {"model": "resnet10t", "kwargs": {"channels": [8] * 4, "stem_width": 8}, "size": 16}
Values = dict[str, Any]


@pytest.fixture(scope="module")
def values(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Values:
    root = tmp_path_factory.mktemp("train-sets")
    data = write_listing(images, root / "t.jsonl")
    return {
        "data": data,
        "val": data,
        "student": STUDENT,
        "out": str(root / "out"),
        "epochs": 2,
        "batch_size": 16,
        "objectives": ["label"],
        "views": {"count": 0, "eval": True},
    }


@pytest.fixture(scope="module")
def result(values: Values) -> TrainResult:
    return train_student(TrainConfig.parse(values, ""))


def test_labels_alone_are_learned_and_evaluated(result: TrainResult, values: Values) -> None:
    found = result.evaluation
    assert found is not None
    assert (found.top1, found.top5) == (None, None)
    assert found.mean_average_precision is not None
    assert 0 < found.mean_average_precision <= 1
    assert result.labeled == found.images < 60
    stored = read_result(values["out"])
    assert stored is not None
    assert stored.evaluation == found
    logged = [event.get("mean_average_precision") for event in read_journal(values["out"])]
    assert found.score in logged


def test_evaluating_the_export_gives_the_same(result: TrainResult, values: Values) -> None:
    config = {
        "network": {"model": f"local-dir:{values['out']}/export"},
        "data": values["data"],
    }
    again = evaluate_network(EvaluateConfig.parse(config, ""))
    assert result.evaluation is not None
    assert again.evaluation.score == pytest.approx(result.evaluation.score, abs=1e-6)
    assert again.evaluation.loss == pytest.approx(result.evaluation.loss, abs=1e-4)
    assert again.classes_with_images == len(TAGS)
    assert again.unlabeled == 60 - result.evaluation.images


def test_classes_of_the_validation_set_go_by_name(
    result: TrainResult, values: Values, images: Path, tmp_path: Path
) -> None:
    """Another order of the classes, and no image of one of them."""
    data = write_listing(images, tmp_path / "t.jsonl")
    (tmp_path / "t.txt").write_text("\n".join(reversed(TAGS)))
    network = {"model": f"local-dir:{values['out']}/export"}

    def evaluated(data: Values) -> float:
        given = EvaluateConfig.parse({"network": network, "data": data}, "")
        return evaluate_network(given).evaluation.score

    assert result.evaluation is not None
    assert evaluated(data) == pytest.approx(result.evaluation.score, abs=1e-6)
    listed: dict[str, list[str] | None] = {key: ["zebra"] for key in sets_of(images)}
    other = write_listing(images, tmp_path / "u.jsonl", listed)
    (tmp_path / "u.txt").write_text("zebra")
    with pytest.raises(DataMismatch, match="zebra"):
        evaluated(other)


def test_the_card_names_the_measurement(result: TrainResult, values: Values) -> None:
    card = (Path(values["out"]) / "export" / "README.md").read_text()
    assert "mAP" in card
    assert "mean_average_precision" in card
    assert "top-1" not in card


def test_images_without_labels_cannot_be_evaluated(
    result: TrainResult, values: Values, images: Path, tmp_path: Path
) -> None:
    sets: dict[str, list[str] | None] = dict.fromkeys(sets_of(images))
    (tmp_path / "t.csv").write_text("path,cat,dog\n" + "".join(f"{key},,\n" for key in sets))
    data = {"name": str(tmp_path / "t.csv"), "root": str(images), "label_column": ["cat", "dog"]}
    network = {"model": f"local-dir:{values['out']}/export"}
    with pytest.raises(DataError, match="no labels to evaluate with"):
        evaluate_network(EvaluateConfig.parse({"network": network, "data": data}, ""))


def test_the_loss_is_the_binary_cross_entropy_of_all_images(
    result: TrainResult, values: Values, images: Path
) -> None:
    """Evaluated a second time: loops over the logits of the exported network."""
    network = build_network(NetworkConfig(model=f"local-dir:{values['out']}/export")).eval()
    spec = input_spec(network, None)
    rows = number_rows(open_source(DataConfig(**values["data"])))
    settings = LoaderSettings(batch_size=60, size=spec.size, mean=spec.mean, std=spec.std)
    loader = Loader(rows, settings, views=eval_views(spec))
    ((shown, targets),) = loader.epoch(0)
    loader.close()
    with torch.inference_mode():
        logits = network(shown)
    sets = sets_of(images)
    losses, scores, present = [], [], []
    for row, z in zip(targets.rows.tolist(), logits, strict=True):
        tags = sets[rows.key(int(rows.find(np.array([row]))[0]))]
        if tags is not None:
            y = [float(tag in tags) for tag in TAGS]
            losses.append(reference.binary_cross_entropy(z.tolist(), y))
            scores.append(z.numpy())
            present.append([bool(value) for value in y])
    assert result.evaluation is not None
    assert result.evaluation.loss == pytest.approx(sum(losses) / len(losses), abs=1e-4)
    expected = mean_average_precision(np.stack(scores), np.array(present))
    assert result.evaluation.score == pytest.approx(expected, abs=1e-6)
