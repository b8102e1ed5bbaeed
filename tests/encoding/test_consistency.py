"""Could a stored row be the encoding of an output within eps of another one?"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from logitcache.encoding.arrays import filled
from logitcache.encoding.basis import Basis, principal_directions
from logitcache.encoding.dense import DenseEncoding
from logitcache.encoding.feature_noise import magnitudes, reduced_noise, relative_difference
from logitcache.encoding.features import FeatureEncoding
from logitcache.encoding.intervals import label_consistent, lse_consistent
from logitcache.encoding.logits import label_log_probs, log_softmax
from logitcache.encoding.principal_components import Principal
from logitcache.encoding.sparse import SparseEncoding
from logitcache.encoding.transform import TransformEncoding
from logitcache.networks.taps import TapShape
from logitcache.teachers.reduce import reduced
from tests.encoding.strategies import log_probs_of, logits

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from logitcache.encoding.arrays import Encoded
    from logitcache.encoding.kinds import Encoding


def transform(classes: int) -> TransformEncoding:
    generator = np.random.default_rng(classes)
    sample = log_softmax(generator.normal(0, 3, (3 * classes, classes)).astype(np.float32))[0]
    return TransformEncoding.of(Basis.of(principal_directions(sample), 1.0), classes // 2)


ENCODINGS: dict[str, Callable[[int], Encoding]] = {
    "codes of 8 bits": lambda classes: SparseEncoding(classes, 2),
    "codes of 5 bits": lambda classes: SparseEncoding(classes, 2, bits=5),
    "relative codes": lambda classes: SparseEncoding(classes, 2, bits=5, relative=True),
    "relative codes and mass": lambda classes: SparseEncoding.new(classes, 3, bits=5, mass=0.8),
    "float16 of k": lambda classes: SparseEncoding(classes, 2, "float16"),
    "mass": lambda classes: SparseEncoding(classes, 2, mass=0.7),
    "mass of float16": lambda classes: SparseEncoding(classes, 2, "float16", mass=0.5),
    "dense": DenseEncoding,
    "dense of a byte": lambda classes: DenseEncoding(classes, "uint8"),
    "transform": transform,
}
EVERY = pytest.mark.parametrize("make", ENCODINGS.values(), ids=ENCODINGS)


def within(values: NDArray[Any], eps: NDArray[Any] | float, seed: int) -> NDArray[Any]:
    """Return numbers anywhere in the box around some others, its corners included."""
    generator = np.random.default_rng(seed)
    share = np.clip(generator.uniform(-2, 2, values.shape), -1, 1)
    return (values + share * eps).astype(values.dtype)


@EVERY
@given(
    z=logits(),
    eps=st.sampled_from([0.0, 1e-9, 1e-4, 0.03, 0.5, 5.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_what_is_within_eps_is_never_refused(
    make: Callable[[int], Encoding], z: NDArray[np.float32], eps: float, seed: int
) -> None:
    encoding, log_probs = make(z.shape[1]), log_probs_of(z)
    stored = encoding.encode(within(log_probs, eps, seed))
    assert encoding.consistent(stored, log_probs, np.full(len(z), eps)).all()


@pytest.fixture
def log_probs() -> NDArray[np.float64]:
    """Return outputs of a teacher that knows its classes: (40, 20)."""
    z = np.random.default_rng(0).normal(size=(40, 20)) * 3
    return log_softmax(z.astype(np.float32))[0]


EPS = np.full(40, 0.02)


@EVERY
def test_the_output_for_another_image_is_refused(
    make: Callable[[int], Encoding], log_probs: NDArray[np.float64]
) -> None:
    encoding = make(20)
    stored = encoding.encode(log_probs)
    assert encoding.consistent(stored, log_probs, EPS).all()
    for name in stored:
        stored[name][7] = stored[name][8]
    assert np.flatnonzero(~encoding.consistent(stored, log_probs, EPS)).tolist() == [7]


def changed(encoding: Encoding, log_probs: NDArray[np.float64], name: str, change: Any) -> bool:
    """Change one number of one row; return whether that row alone is refused."""
    stored = encoding.encode(log_probs)
    stored[name][7] = change(stored[name][7].copy())
    return bool(np.flatnonzero(~encoding.consistent(stored, log_probs, EPS)).tolist() == [7])


def put(index: int, by: float) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Return what adds to one number of a row."""

    def change(row: NDArray[Any]) -> NDArray[Any]:
        row[index] += np.asarray(by).astype(row.dtype)
        return row

    return change


@pytest.mark.parametrize(
    ("make", "name", "change"),
    [
        ("codes of 8 bits", "codes", put(0, 4)),
        ("codes of 8 bits", "codes", put(1, -4)),
        ("codes of 5 bits", "codes", put(0, 1)),
        ("codes of 8 bits", "class_ids", put(0, 1)),
        ("codes of 8 bits", "tail", put(0, 0.1)),
        ("codes of 8 bits", "tail", put(1, -0.1)),
        ("float16 of k", "logp_k", put(0, -0.1)),
        ("float16 of k", "class_ids", put(1, 1)),
        ("dense", "logp", put(3, 0.1)),
        ("dense of a byte", "logp", put(3, 2)),
        ("dense of a byte", "logp_range", put(0, 0.2)),
        ("dense of a byte", "logp_range", put(1, -0.2)),
        ("transform", "coefficients", put(0, 1)),
        ("transform", "coefficients", put(-1, 1)),
        ("transform", "refinements", put(0, 2)),
        ("transform", "refinements", put(-1, 1)),
        ("transform", "coefficients", lambda row: np.full_like(row, 128)),
    ],
)
def test_one_changed_number_is_found(
    log_probs: NDArray[np.float64], make: str, name: str, change: Any
) -> None:
    assert changed(ENCODINGS[make](20), log_probs, name, change)


def test_a_change_below_the_tolerance_is_taken_for_noise(log_probs: NDArray[np.float64]) -> None:
    assert not changed(DenseEncoding(20), log_probs, "logp", put(3, 0.01))


def test_rows_that_no_encoding_writes_are_refused(log_probs: NDArray[np.float64]) -> None:
    encoding = SparseEncoding(20, 3)
    good: Any = encoding.encode(log_probs)
    wide = np.full(40, 1e3)  # whatever the numbers are
    cases: dict[str, Encoded] = {
        "the fill": filled(encoding.specs(), 40),
        "a class that is not there": {**good, "class_ids": good["class_ids"] + 20},
        "ids that do not ascend": {**good, "class_ids": good["class_ids"] * np.array([1, 0, 1])},
        "an entry left out": {**good, "codes": good["codes"] * np.array([1, 0, 1])},
        "a tail that is no number": {**good, "tail": good["tail"] * np.nan},
    }
    assert encoding.consistent(good, log_probs, wide).all()
    for what, arrays in cases.items():
        assert not encoding.consistent(arrays, log_probs, wide).any(), what
    for other in (DenseEncoding(20), DenseEncoding(20, "uint8")):
        assert not other.consistent(filled(other.specs(), 40), log_probs, wide).any()


def test_the_number_of_classes_that_hold_a_mass_is_checked(log_probs: NDArray[np.float64]) -> None:
    encoding = SparseEncoding(20, 6, mass=0.7)
    fewer, more = replace(encoding, mass=0.3), replace(encoding, mass=0.95)
    for other in (fewer, more):
        stored: Any = other.encode(log_probs)
        same = (stored["codes"] > 0).sum(axis=1) == encoding.kept(log_probs).sum(axis=1)
        assert 0 < same.sum() < 35
        assert (encoding.consistent(stored, log_probs, np.zeros(40)) == same).all()


def test_classes_that_rounding_may_exchange_are_accepted() -> None:
    log_probs = np.log(np.array([[0.4, 0.2001, 0.2, 0.1999]]))
    encoding = SparseEncoding(4, 2)
    other = encoding.encode(log_probs[:, [0, 2, 1, 3]])
    assert other["class_ids"].tolist() == [[0, 2]]
    assert encoding.consistent(other, log_probs, np.array([1e-3])).all()
    assert not encoding.consistent(other, log_probs, np.array([1e-5])).any()


def test_lse_and_label_are_checked_by_themselves(log_probs: NDArray[np.float64]) -> None:
    labels = (np.arange(40, dtype=np.int32) % 21) - 1
    lse = np.linspace(-5, 50, 40)
    stored_lse, stored_label = lse.astype(np.float32), label_log_probs(log_probs, labels)
    assert lse_consistent(stored_lse, lse, np.zeros(40)).all()
    assert label_consistent(stored_label, log_probs, labels, np.zeros(40)).all()
    stored_lse[3] += 0.1
    stored_label[[4, 21]] = [stored_label[4] - np.float16(0.1), np.float16(-1)]
    assert np.flatnonzero(~lse_consistent(stored_lse, lse, EPS)).tolist() == [3]
    assert labels[21] == -1
    wrong = ~label_consistent(stored_label, log_probs, labels, EPS)
    assert np.flatnonzero(wrong).tolist() == [4, 21]


SHAPES: dict[str, tuple[int, ...]] = {"NCHW": (5, 3, 3), "NLC": (7, 4), "vector": (6,)}


@given(
    layout=st.sampled_from(["NCHW", "NLC", "vector"]),
    values=st.sampled_from(["float16", "bfloat16", "int8"]),
    axes=st.sampled_from(["channels", "positions"]),
    size=st.sampled_from([0.0, 1e-9, 1e-3, 1.0, 900.0]),
    eps=st.sampled_from([0.0, 1e-10, 1e-4, 0.1, 1e3]),
    seed=st.integers(0, 2**32 - 1),
)
def test_features_within_eps_are_never_refused(
    layout: Any, values: Any, axes: Any, size: float, eps: float, seed: int
) -> None:
    encoding = FeatureEncoding(
        layout, SHAPES[layout], values, "channels" if layout == "vector" else axes
    )
    generator = np.random.default_rng(seed)
    rows = np.maximum(generator.normal(size=(4, *encoding.shape)), -0.5).astype(np.float32)
    rows *= np.float32(size)
    limits = np.full_like(rows, eps)
    stored = encoding.encode(within(rows, limits * np.float32(0.999), seed))
    assert encoding.consistent(stored, rows, limits).all()


@pytest.mark.parametrize("values", ["float16", "bfloat16", "int8"])
def test_one_changed_feature_is_found(values: Any) -> None:
    encoding = FeatureEncoding("NCHW", (5, 3, 3), values)
    rows = np.random.default_rng(1).normal(size=(6, 5, 3, 3)).astype(np.float32)
    eps = np.full_like(rows, 0.01)
    good = encoding.encode(rows)
    assert encoding.consistent(good, rows, eps).all()
    stored = {name: array.copy() for name, array in good.items()}
    channel = np.abs(rows[2, :, 1, 1]).argmin()  # another one may set the scale of int8
    exact = rows.copy()
    exact[2, channel, 1, 1] += 0.1
    stored["values"][2, channel, 1, 1] = encoding.encode(exact)["values"][2, channel, 1, 1]
    assert np.flatnonzero(~encoding.consistent(stored, rows, eps)).tolist() == [2]
    for name in stored:
        stored[name][:] = good[name]
        stored[name][4] = good[name][5]
    assert np.flatnonzero(~encoding.consistent(stored, rows, eps)).tolist() == [4]
    assert not encoding.consistent(filled(encoding.specs(), 6), rows, eps).any()


def test_a_changed_scale_is_found() -> None:
    encoding = FeatureEncoding("NLC", (7, 4), "int8")
    rows = np.random.default_rng(1).normal(size=(3, 7, 4)).astype(np.float32)
    stored = encoding.encode(rows)
    stored["scale"][1, 2] *= np.float16(1.1)
    found = encoding.consistent(stored, rows, np.full_like(rows, 0.001))
    assert found.tolist() == [True, False, True]


MAP = TapShape("NCHW", (6, 8, 8), grid=8)
TOKENS = TapShape("NLC", (10, 6), grid=3, prefix_tokens=1)
DIRECTIONS = np.linalg.qr(np.random.default_rng(3).normal(size=(6, 6)))[0].astype(np.float32)
PRINCIPAL = Principal(np.linspace(-1, 1, 6).astype(np.float32), DIRECTIONS[:, :3])
REDUCTIONS: dict[str, tuple[TapShape, FeatureEncoding]] = {
    "none": (MAP, FeatureEncoding("NCHW", (6, 8, 8))),
    "mean": (MAP, FeatureEncoding("vector", (6,), reduction="mean")),
    "pooled": (MAP, FeatureEncoding("NCHW", (6, 3, 3), grid=3, pool=3)),
    "energy": (MAP, FeatureEncoding("NCHW", (1, 8, 8), grid=8, reduction="energy")),
    "standardized": (MAP, FeatureEncoding("NCHW", (6, 8, 8), standardized=True)),
    "energy, standardized and pooled": (
        MAP,
        FeatureEncoding("NCHW", (1, 2, 2), grid=2, reduction="energy", standardized=True, pool=2),
    ),
    "principal": (MAP, FeatureEncoding("NCHW", (3, 8, 8), grid=8, principal=PRINCIPAL)),
    "tokens of a map": (MAP, FeatureEncoding("NLC", (5, 6), grid=8, kept=5)),
    "tokens": (TOKENS, FeatureEncoding("NLC", (5, 6), grid=3, prefix_tokens=1, kept=4)),
    "mean of tokens": (TOKENS, FeatureEncoding("vector", (6,), reduction="mean")),
    "principal of tokens": (
        TOKENS,
        FeatureEncoding("NLC", (10, 3), grid=3, prefix_tokens=1, principal=PRINCIPAL),
    ),
}


@pytest.mark.parametrize("name", REDUCTIONS)
def test_noise_of_activations_moves_what_is_stored_by_no_more_than_its_bound(name: str) -> None:
    shape, encoding = REDUCTIONS[name]
    generator = np.random.default_rng(5)
    positions = None
    if encoding.kept is not None:
        drawn = generator.random((40, encoding.patches)).argsort(axis=1)[:, : encoding.kept]
        positions = torch.from_numpy(np.sort(drawn, axis=1))
    rows = (generator.normal(size=(40, *shape.shape)) + 2).astype(np.float32)
    if shape.layout == "NCHW":
        rows[:, 1] = 3.0  # a flat channel
        rows[:, 2] = 3.0 + 1e-3 * rows[:, 2]

    def reduce(values: NDArray[np.float32], how: FeatureEncoding) -> NDArray[np.float32]:
        return reduced(torch.from_numpy(values), shape, how, positions).numpy()

    relative = np.full(40, 1e-3)
    bound = reduced_noise(rows, relative, encoding, partial(reduce))
    stored = reduce(rows, encoding)
    assert bound.shape == stored.shape == (40, *encoding.shape)
    for sign in (1, -1, 0):
        # activations are off by a fifth of their bound as a rule, as of a largest of many numbers
        noise = generator.normal(size=rows.shape) / 5 if encoding.principal else None
        share = np.clip(generator.uniform(-2, 2, rows.shape), -1, 1) if noise is None else noise
        share = np.where(sign, sign, share) if noise is None else share
        moved = rows + (1e-3 * share * magnitudes(rows)).astype(np.float32)
        assert relative_difference(rows, moved).max() < 1.1e-3
        assert (np.abs(reduce(moved, encoding) - stored) <= 1.01 * bound + 1e-5).all()
    if "standardized" not in name:
        assert np.median(bound) < 0.05 * np.abs(stored).max(), "the bound is of use"
