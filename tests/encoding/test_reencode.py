"""Outputs in a smaller encoding, compared with encoding the exact outputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from logitcache.encoding.arrays import filled
from logitcache.encoding.dense import DenseEncoding
from logitcache.encoding.logits import log_softmax
from logitcache.encoding.reencode import reencode, smaller
from logitcache.encoding.sparse import SparseEncoding

if TYPE_CHECKING:
    from numpy.typing import NDArray

CLASSES, ROWS = 40, 64


def outputs(seed: int) -> NDArray[np.float64]:
    logits = np.random.default_rng(seed).normal(0, 3, (ROWS, CLASSES)).astype(np.float32)
    return log_softmax(logits)[0]


def tails(log_probs: NDArray[np.float64], ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return log M(1) and log M(1/4) of the classes that are not kept, by a loop."""
    found = []
    for row, kept in zip(log_probs, ids, strict=True):
        rest = [row[n] for n in range(CLASSES) if n not in kept.tolist()]
        found.append([np.log(sum(np.exp(b * value) for value in rest)) for b in (1.0, 0.25)])
    return np.array(found)


@given(
    seed=st.integers(0, 999),
    stored=st.integers(2, CLASSES - 1),
    fewer=st.integers(1, CLASSES - 1),
    values=st.sampled_from(["codes", "float16"]),
    mass=st.sampled_from([None, 0.9]),
)
def test_fewer_classes_are_those_of_the_exact_outputs(
    seed: int, stored: int, fewer: int, values: Any, mass: float | None
) -> None:
    exact = outputs(seed)
    before = SparseEncoding(CLASSES, stored, values, 8, mass)
    after = smaller(before, fewer, None)
    assert isinstance(after, SparseEncoding)
    assert (after.top_k, after.bits, after.mass) == (min(stored, fewer), 8, mass)
    found = reencode(before, after, before.encode(exact))
    computed = after.encode(exact)
    name = "codes" if values == "codes" else "logp_k"
    ours, theirs = after.decode(found), after.decode(computed)
    # where stored numbers at the limit are different, classes and numbers are bit for bit the same
    numbers = np.sort(before.encode(exact)[name].astype(np.float64), axis=1)[:, ::-1]
    numbers = np.nan_to_num(numbers, nan=-np.inf)
    limit = after.top_k
    clear = np.ones(ROWS, bool) if limit == stored else numbers[:, limit - 1] > numbers[:, limit]
    if mass is None:
        assert clear.sum() > ROWS // 4
        for array in ("class_ids", name):
            assert np.array_equal(found[array][clear], computed[array][clear])
        expected = tails(exact[clear], ours.class_ids[clear])
        # of the classes in the tail, the most probable one has at least their mean
        least = 255 * (np.exp(expected[:, 0]) / CLASSES) ** (1 / 8)
        bound = -8 * np.log1p(-1 / (2 * least)) + 2e-3 * abs(expected[:, 0]) + 0.01
        assert (abs(ours.tail[clear, 0] - expected[:, 0]) <= bound).all()
        assert abs(ours.tail[clear, 1] - expected[:, 1]).max() < 0.05
    # elsewhere, another class with the same code may be kept
    same = (found["class_ids"] == computed["class_ids"]).all(axis=1)
    assert same.sum() > ROWS // 4
    for b in (1.0, 0.5, 0.25):
        logs, expected = (d.dense_log_probs(b)[same] for d in (ours, theirs))
        divergence = (np.exp(expected) * (expected - logs)).sum(axis=1)
        assert abs(divergence).max() < 1e-3


@given(
    seed=st.integers(0, 999), bits=st.integers(4, 7), values=st.sampled_from(["codes", "float16"])
)
def test_codes_with_fewer_bits_are_off_by_one_level_at_most(
    seed: int, bits: int, values: Any
) -> None:
    exact = outputs(seed)
    before = SparseEncoding(CLASSES, 10, values)
    after = smaller(before, None, bits)
    found, computed = reencode(before, after, before.encode(exact)), after.encode(exact)
    assert np.array_equal(found["class_ids"], computed["class_ids"])
    assert np.array_equal(found["tail"], computed["tail"])
    codes = found["codes"].astype(int) - computed["codes"].astype(int)
    assert abs(codes).max() <= 1
    assert (codes != 0).mean() < 0.2


@given(seed=st.integers(0, 999), values=st.sampled_from(["float16", "uint8"]))
def test_all_classes_become_the_most_probable_ones(seed: int, values: Any) -> None:
    exact = outputs(seed)
    before = DenseEncoding(CLASSES, values)
    after = smaller(before, 6, 8)
    assert after.to_json() == SparseEncoding(CLASSES, 6).to_json()
    arrays = before.encode(exact)
    found, computed = reencode(before, after, arrays), after.encode(exact)
    decoded = before.decode(arrays).dense_log_probs()
    assert np.array_equal(after.encode(decoded)["codes"], found["codes"])
    same = (found["class_ids"] == computed["class_ids"]).all(axis=1)
    assert same.mean() > (0.9 if values == "float16" else 0.3)


def test_rows_that_were_not_computed_and_other_arrays_are_kept() -> None:
    exact = outputs(1)
    for before in (SparseEncoding(CLASSES, 10), DenseEncoding(CLASSES, "float16")):
        after = smaller(before, 3, 5)
        arrays = filled(before.specs(), ROWS)
        for name, array in before.encode(exact[:7]).items():
            arrays[name][:7] = array
        arrays["lse"] = np.arange(ROWS, dtype=np.float32)
        found = reencode(before, after, arrays)
        assert np.array_equal(found["lse"], arrays["lse"])
        empty = filled(after.specs(), ROWS)
        for name in after.specs():
            assert np.array_equal(found[name][7:], empty[name][7:], equal_nan=name == "tail")
        assert after.decode({n: found[n] for n in after.specs()}).computed.tolist() == [
            True
        ] * 7 + [False] * (ROWS - 7)


@pytest.mark.parametrize(
    ("stored", "top_k", "bits"),
    [
        (SparseEncoding(CLASSES, 10, "codes", 5), 10, 5),
        (SparseEncoding(CLASSES, 10, "codes", 5), 20, None),
        (SparseEncoding(CLASSES, 10, "codes", 5), None, 8),
        (DenseEncoding(CLASSES, "float16"), CLASSES, None),
        (DenseEncoding(CLASSES, "float16"), None, 5),
    ],
)
def test_an_encoding_that_is_no_larger_stays_as_it_is(
    stored: Any, top_k: int | None, bits: int | None
) -> None:
    assert smaller(stored, top_k, bits) is stored or smaller(stored, top_k, bits) == stored
