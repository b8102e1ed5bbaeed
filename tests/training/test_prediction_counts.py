"""Counts of predictions against plain loops, in a file, and after an evaluation."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from logitcache.data.readers import open_source
from logitcache.networks.build import NetworkConfig, build_network, input_spec
from logitcache.training.evaluation.evaluator import Evaluator
from logitcache.training.evaluation.prediction_counts import (
    PREDICTIONS,
    PredictionCounts,
    read_predictions,
    write_predictions,
)
from tests.conftest import CLASSES

if TYPE_CHECKING:
    from pathlib import Path

IMAGES = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 4), st.floats(0, 1)), min_size=1, max_size=40
)


def counted(images: list[tuple[int, int, float]]) -> PredictionCounts:
    counts = PredictionCounts(list("abcd"))
    labels, predicted, confidence = (np.array(column) for column in zip(*images, strict=True))
    counts.add(labels, predicted, confidence)
    return counts


@given(IMAGES, IMAGES)
def test_counts_are_those_of_plain_loops_and_add_up(
    first: list[tuple[int, int, float]], second: list[tuple[int, int, float]]
) -> None:
    counts, images = PredictionCounts.total([counted(first), counted(second)]), [*first, *second]
    error = 0.0
    for number in range(15):
        here = [i for i in images if min(int(i[2] * 15), 14) == number]
        assert counts.images[number] == len(here)
        assert counts.right[number] == sum(label == top for label, top, _ in here)
        assert counts.confidence[number] == pytest.approx(sum(share for _, _, share in here))
        error += abs(sum(share - (label == top) for label, top, share in here))
    assert counts.calibration_error == pytest.approx(error / len(images))
    assert counts.accuracy == pytest.approx(np.mean([label == top for label, top, _ in images]))
    for label, (shown, right) in counts.by_class.items():
        assert shown == sum(i[0] == label for i in images)
        assert right == sum(i[0] == i[1] == label for i in images)
    again = PredictionCounts.from_json(json.loads(json.dumps(counts.to_json())))
    assert again.to_json() == counts.to_json()
    assert counts.name_of(4) == "output 4"


@pytest.mark.parametrize(
    "change",
    [{"images": [1]}, {"pairs": [[-1, 0, 2]]}, {"pairs": [[0, 1]]}, {"confidence": ["x"] * 15}],
)
def test_a_damaged_file_is_an_error(tmp_path: Path, change: dict[str, Any]) -> None:
    assert read_predictions(tmp_path) is None
    write_predictions(tmp_path, counted([(0, 0, 0.5)]))
    values = json.loads((tmp_path / PREDICTIONS).read_text())
    (tmp_path / PREDICTIONS).write_text(json.dumps(values | change))
    with pytest.raises(ValueError):
        read_predictions(tmp_path)


def test_an_evaluation_writes_its_predictions(
    images: Path, teachers: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    network: Any = build_network(NetworkConfig(**teachers["cnn"]))
    source, device = open_source(str(images)), torch.device("cpu")
    evaluator = Evaluator(
        source, input_spec(network), batch_size=7, device=device, threads=1, out=tmp_path
    )
    for _ in range(2):  # the second one replaces the first
        evaluation = evaluator(network)
    evaluator.close()
    found = read_predictions(tmp_path)
    assert found is not None
    assert found.class_names == list(CLASSES)
    assert found.images.sum() == evaluation.images == 60
    assert found.accuracy == pytest.approx(evaluation.top1)
    assert sum(found.pairs.values()) == 60
