from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest

from logitcache.encoding.dense import DenseEncoding
from logitcache.encoding.fidelity import TEMPERATURES, measure_fidelity
from logitcache.encoding.sparse import SparseEncoding
from tests.encoding.strategies import log_probs_of
from tests.objectives import reference

if TYPE_CHECKING:
    from logitcache.encoding.kinds import Encoding

ROWS, CLASSES, TOP_K = 100, 30, 5


def rows(seed: int = 0, scale: float = 3.0) -> np.ndarray:
    z = scale * np.random.default_rng(seed).normal(size=(ROWS, CLASSES))
    return log_probs_of(z.astype(np.float32))


def truncated(log_p: list[float], b: float) -> list[float]:
    """The K likeliest classes and an exact tail, by plain loops."""
    order = sorted(range(CLASSES), key=lambda c: (-log_p[c], c))
    present, absent = order[:TOP_K], order[TOP_K:]
    tail = (
        math.log(math.fsum(math.exp(log_p[c]) for c in absent)),
        math.log(math.fsum(math.exp(log_p[c] / 4) for c in absent)),
    )
    mass = reference.tail_mass(tail, len(absent), b)
    weights = [
        math.exp(b * log_p[c]) if c in present else mass / len(absent) for c in range(CLASSES)
    ]
    total = math.fsum(weights)
    return [math.log(weight / total) for weight in weights]


@pytest.mark.requirement("F13.2", "F13.3")
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_truncation_is_that_of_the_plain_loops(temperature: float) -> None:
    exact = rows()
    found = measure_fidelity(SparseEncoding(CLASSES, TOP_K), exact).losses[temperature]
    b = 1 / temperature
    expected = [
        reference.kl(
            [math.exp(value) for value in reference.log_softmax([b * value for value in row])],
            truncated(row, b),
        )
        - reference.kl(
            [math.exp(value) for value in reference.log_softmax([b * value for value in row])],
            reference.log_softmax([b * value for value in row]),
        )
        for row in exact.tolist()
    ]
    assert found.truncation == pytest.approx(np.mean(expected), rel=1e-9)
    assert 0 <= abs(found.coding) < 1e-3


@pytest.mark.requirement("F13.2", "F13.3")
def test_the_gradient_error_is_that_of_the_distributions() -> None:
    exact = rows()
    found = measure_fidelity(SparseEncoding(CLASSES, TOP_K, "float16"), exact).losses[1.0]
    cut = np.exp([truncated(row, 1.0) for row in exact.tolist()])
    student = np.exp([reference.log_softmax([0.6 * v for v in row]) for row in exact.tolist()])
    error = np.linalg.norm(cut - np.exp(exact)) / np.linalg.norm(student - np.exp(exact))
    assert found.gradient == pytest.approx(error, rel=0.02)  # float16 adds a little


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (SparseEncoding(CLASSES, 10), SparseEncoding(CLASSES, 5)),
        (SparseEncoding(CLASSES, 10, bits=8), SparseEncoding(CLASSES, 10, bits=4)),
        (DenseEncoding(CLASSES), DenseEncoding(CLASSES, "uint8")),
        (DenseEncoding(CLASSES), SparseEncoding(CLASSES, 10)),
    ],
)
def test_more_bytes_lose_less(better: Encoding, worse: Encoding) -> None:
    good, bad = measure_fidelity(better, rows()), measure_fidelity(worse, rows())
    for temperature in TEMPERATURES:
        assert good.kl(temperature) < bad.kl(temperature)
    assert good.top1 >= bad.top1


def test_top_k_is_a_device_for_temperature_one() -> None:
    found = measure_fidelity(SparseEncoding(CLASSES, TOP_K), rows()).losses
    assert found[1.0].gradient < found[2.0].gradient < found[4.0].gradient
    assert all(abs(loss.coding) < loss.truncation / 100 for loss in found.values())


def test_equal_logits_lose_nothing() -> None:
    flat = np.full((3, CLASSES), -math.log(CLASSES))
    found = measure_fidelity(DenseEncoding(CLASSES), flat)
    assert found.top1 == 1.0
    assert found.kl(1.0) == pytest.approx(0.0, abs=1e-6)
    assert found.losses[1.0].gradient == 0.0


def test_it_becomes_json() -> None:
    values = measure_fidelity(DenseEncoding(CLASSES), rows()).to_json()
    assert values["rows"] == ROWS
    assert list(values["temperatures"]) == ["1", "2", "4"]
