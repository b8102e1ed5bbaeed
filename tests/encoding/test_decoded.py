"""Decoded distributions against plain loops in float64, and rows that were not computed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from logitcache.batch import DenseLogits, SparseLogits
from logitcache.encoding.agreement import row_closeness
from logitcache.encoding.arrays import filled
from logitcache.encoding.decoded import NO_CLASS, Decoded, DecodedSparse
from logitcache.encoding.dense import DenseEncoding
from logitcache.encoding.sparse import SparseEncoding
from tests.encoding.strategies import log_probs_of
from tests.objectives import reference

if TYPE_CHECKING:
    from collections.abc import Callable

    from logitcache.encoding.kinds import Encoding

ROWS, CLASSES = 90, 12
ENCODINGS: list[Encoding] = [
    SparseEncoding(CLASSES, 4),
    SparseEncoding(CLASSES, 4, bits=4),
    SparseEncoding(CLASSES, 4, "float16"),
    SparseEncoding(CLASSES, 6, mass=0.9),
    SparseEncoding(CLASSES, 11, "float16"),
    DenseEncoding(CLASSES),
    DenseEncoding(CLASSES, "uint8"),
]


def decoded_rows(encoding: Encoding, scale: float = 2.0) -> Decoded:
    z = scale * np.random.default_rng(0).normal(size=(ROWS, CLASSES))
    return encoding.decode(encoding.encode(log_probs_of(z.astype(np.float32))))


def present(decoded: Decoded, row: int) -> dict[int, float]:
    """The stored classes of a row with their log-probabilities, by plain loops."""
    ids = decoded.class_ids[row] if isinstance(decoded, DecodedSparse) else range(CLASSES)
    stored = zip(ids, decoded.log_probs[row].tolist(), strict=True)
    return {int(c): value for c, value in stored if value > -math.inf}


def dense(decoded: Decoded, row: int, b: float) -> list[float]:
    """The probabilities of all classes at temperature 1 / b, by plain loops."""
    stored = present(decoded, row)
    absent = CLASSES - len(stored)
    each = 0.0
    if isinstance(decoded, DecodedSparse) and absent:
        one, quarter = decoded.tail[row].tolist()
        each = reference.tail_mass((one, quarter), absent, b) / absent
    weights = [math.exp(b * stored[c]) if c in stored else each for c in range(CLASSES)]
    return [weight / math.fsum(weights) for weight in weights]


@pytest.mark.requirement("F6.9")
@pytest.mark.parametrize("b", [1.0, 0.5, 0.25])
@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
def test_dense_probabilities_are_those_of_the_plain_loops(encoding: Encoding, b: float) -> None:
    decoded = decoded_rows(encoding)
    expected = np.array([dense(decoded, row, b) for row in range(ROWS)])
    assert np.exp(decoded.dense_log_probs(b)) == pytest.approx(expected, rel=1e-10, abs=1e-300)
    if b == 1.0:
        assert decoded.probs() == pytest.approx(expected, rel=1e-6)
        assert decoded.probs().dtype == np.float32


@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
def test_top_class_entropy_and_tail_mass_are_those_of_the_plain_loops(encoding: Encoding) -> None:
    decoded = decoded_rows(encoding)
    assert decoded.computed.all()
    for row in range(ROWS):
        stored, probs = present(decoded, row), dense(decoded, row, 1.0)
        best = max(stored, key=lambda c: (stored[c], -c))
        assert decoded.top_class()[row] == best
        entropy = -math.fsum(p * math.log(p) for p in probs if p)
        assert decoded.entropy()[row] == pytest.approx(entropy, abs=2e-6)
        tail = math.fsum(p for c, p in enumerate(probs) if c not in stored)
        assert decoded.tail_mass()[row] == pytest.approx(tail, abs=1e-6)


def nan_rows(encoding: Encoding, stored: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every second row as it is where there was no image."""
    fill = filled(encoding.specs(), ROWS)
    odd = np.arange(ROWS) % 2 == 1
    return {
        name: np.where(odd.reshape(-1, *[1] * (array.ndim - 1)), fill[name], array)
        for name, array in stored.items()
    }


@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
@pytest.mark.filterwarnings("error")
def test_rows_that_were_not_computed_are_nan_and_have_no_class(encoding: Encoding) -> None:
    whole = decoded_rows(encoding)
    stored = encoding.encode(whole.dense_log_probs())
    decoded = encoding.decode(nan_rows(encoding, stored))
    again = encoding.decode(stored)
    odd = np.arange(ROWS) % 2 == 1
    assert decoded.computed.tolist() == (~odd).tolist()
    assert (decoded.top_class()[odd] == NO_CLASS).all()
    assert (decoded.top_class()[~odd] == again.top_class()[~odd]).all()
    numbers: list[Callable[[Decoded], np.ndarray]] = [
        lambda d: d.dense_log_probs(0.5),
        lambda d: d.probs(),
        lambda d: d.entropy()[:, None],
        lambda d: d.tail_mass()[:, None],
    ]
    for of in numbers:
        assert np.isnan(of(decoded)[odd]).all()
        assert (of(decoded)[~odd] == of(again)[~odd]).all()


@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
def test_rows_that_were_not_computed_agree_with_no_row(encoding: Encoding) -> None:
    stored = encoding.encode(decoded_rows(encoding).dense_log_probs())
    found = row_closeness(encoding, stored, nan_rows(encoding, stored))
    odd = np.arange(ROWS) % 2 == 1
    assert (found["agreement"] == ~odd).all()
    assert (found["overlap"] == ~odd).all()
    assert (found["kl"][odd] > 1000).all()
    assert np.isfinite(found["kl"]).all()


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_one_number_that_is_not_finite_spoils_its_row(number: float) -> None:
    arrays = ((ENCODINGS[2], "logp_k"), (ENCODINGS[5], "logp"), (ENCODINGS[0], "tail"))
    for encoding, name in arrays:
        stored = encoding.encode(decoded_rows(encoding).dense_log_probs())
        if name == "logp_k" and np.isnan(number):
            continue  # an entry that is not used
        stored[name][7, 1] = number
        with np.errstate(invalid="ignore"):
            decoded = encoding.decode(stored)
        assert np.flatnonzero(~decoded.computed).tolist() == [7]
        assert np.isnan(decoded.dense_log_probs()[7]).all()


@pytest.mark.parametrize("k", [1, 3, 50])
@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
def test_top_classes_of_a_batch_are_those_of_the_plain_loops(encoding: Encoding, k: int) -> None:
    stored = encoding.encode(decoded_rows(encoding).dense_log_probs())
    decoded = encoding.decode(nan_rows(encoding, stored))
    log_probs = torch.from_numpy(decoded.log_probs)
    batch = (
        SparseLogits(
            torch.from_numpy(decoded.class_ids), log_probs, torch.from_numpy(decoded.tail), CLASSES
        )
        if isinstance(decoded, DecodedSparse)
        else DenseLogits(log_probs)
    )
    top, ids = batch.top_classes(k)
    assert top.shape == ids.shape == (ROWS, min(k, decoded.log_probs.shape[1]))
    for row in range(ROWS):
        if row % 2:
            assert (ids[row] == NO_CLASS).all()
            assert top[row].isnan().all()
            continue
        found = present(decoded, row)
        expected = sorted(found.values(), reverse=True)[:k]
        assert top[row, : len(expected)].tolist() == expected
        assert [found[c] for c in ids[row, : len(expected)].tolist()] == expected
        assert (ids[row, len(expected) :] == NO_CLASS).all()
    if k == 1:
        assert ids[:, 0].tolist() == decoded.top_class().tolist()
