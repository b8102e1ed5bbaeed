"""The transform encoding: exact scores, codes that do not depend on the processor, fidelity."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from logitcache.cache.format.arrays import packed_bytes
from logitcache.cache.format.names import FEATURES
from logitcache.cache.read.reader import open_cache
from logitcache.cache.write.drop import drop_from_cache
from logitcache.encoding.basis import Basis, centered, principal_directions
from logitcache.encoding.fidelity import measure_fidelity
from logitcache.encoding.kinds import parse_encoding
from logitcache.encoding.logits import log_softmax
from logitcache.encoding.sparse import SparseEncoding
from logitcache.encoding.transform import TransformEncoding
from logitcache.errors import CacheError, UnsupportedFormat
from tests.cache.building import make_cache

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

CLASSES, ROWS = 200, 600


def structured(rows: int, seed: int) -> NDArray[np.float64]:
    """Return outputs whose logits have most of their variance in 40 directions: (N, 200)."""
    directions = np.random.default_rng(7).normal(size=(40, CLASSES)) / np.sqrt(CLASSES)
    sizes = 30.0 / np.arange(1, 41)
    generator = np.random.default_rng(seed)
    coefficients = generator.normal(size=(rows, 40)) * sizes
    noise = generator.normal(0, 0.3, (rows, CLASSES))
    return log_softmax((coefficients @ directions * 5 + noise).astype(np.float32))[0]


PRINCIPAL = principal_directions(structured(ROWS, 0))
BASIS = Basis.of(PRINCIPAL, step=2.0)
ENCODING = TransformEncoding.of(BASIS, refined=20)
HELD_OUT = structured(256, 1)


def test_the_sample_determines_the_directions() -> None:
    """More rows than classes or fewer: the leading directions are those of the covariance."""
    rows = structured(150, 3)
    few = principal_directions(rows)
    x = centered(rows)
    variances, vectors = np.linalg.eigh(np.cov(x.T, bias=True))
    np.testing.assert_allclose(few.deviations[:20] ** 2, variances[::-1][:20], rtol=1e-6)
    cosines = np.abs((few.directions[:10] * vectors.T[::-1][:10]).sum(axis=1))
    np.testing.assert_allclose(cosines, 1.0, atol=1e-6)
    np.testing.assert_allclose(few.mean, x.mean(axis=0))


@pytest.mark.requirement("F7.6", "F7.9")
def test_scores_are_exact_in_float32() -> None:
    assert BASIS.is_exact
    extreme = np.where(BASIS.directions[:, :1].T > 0, 7, -8).astype(np.int8)
    extreme[:, : BASIS.wide] = np.where(BASIS.directions[: BASIS.wide, :1].T > 0, 127, -127)
    codes = np.concatenate([extreme, ENCODING_CODES])
    exact = BASIS.mean.astype(object) + codes.astype(object) @ BASIS.directions.astype(object)
    assert (BASIS.scores(codes).astype(object) == exact).all()


ENCODING_CODES = np.random.default_rng(5).integers(-8, 8, (50, BASIS.count)).astype(np.int8)


@pytest.mark.requirement("F7.13")
def test_codes_are_those_of_exact_arithmetic() -> None:
    """Against fractions: no rounding but the one of the log-probabilities and of the codes."""
    log_probs = HELD_OUT[:5]
    x = centered(log_probs)
    stored = ENCODING.encode(log_probs)["coefficients"]
    for row in range(len(x)):
        fixed = [Fraction(round(float(value) * 2**14), 2**14) for value in x[row]]
        for d in range(BASIS.wide):
            b = [int(value) for value in BASIS.directions[d]]
            product = sum(value * weight for value, weight in zip(fixed, b, strict=True))
            of_mean = sum(int(m) * weight for m, weight in zip(BASIS.mean, b, strict=True))
            exact = (product / Fraction(BASIS.scale) - of_mean) / sum(weight**2 for weight in b)
            assert stored[row].view(np.int8)[d] == max(-127, min(127, round(exact)))


@pytest.mark.requirement("F7.10", "F7.14")
def test_corrections_are_relative_to_the_mass_of_the_other_classes() -> None:
    log_probs = HELD_OUT[:20]
    encoding = TransformEncoding(CLASSES, BASIS, refined=9, fine=9, refined_step=0.08)
    stored = encoding.encode(log_probs)
    codes = np.concatenate([unpacked(r, BASIS.wide, BASIS.count) for r in stored["coefficients"]])
    for row, scores in enumerate(BASIS.scores(codes).astype(np.float64)):
        order = sorted(range(CLASSES), key=lambda c: (-scores[c], c))
        ids, others = sorted(order[:9]), order[9:]
        exact, approximate = log_probs[row], BASIS.scale * scores
        offset = 2 * np.log(np.exp(exact[others] / 2).sum())
        offset -= 2 * np.log(np.exp(approximate[others] / 2).sum())
        corrections = (exact - approximate - offset)[ids] / 0.01
        np.testing.assert_array_equal(
            stored["refinements"][row].view(np.int8), np.clip(np.rint(corrections), -127, 127)
        )


def unpacked(row: NDArray[np.uint8], wide: int, count: int) -> NDArray[np.int8]:
    """Return the codes of one row, one by one: int8 (1, count)."""
    codes = [int(byte) - 256 * (byte > 127) for byte in row[:wide]]
    for byte in row[wide:]:
        codes += [int(byte & 15) - 16 * (byte & 15 > 7), int(byte >> 4) - 16 * (byte >> 4 > 7)]
    return np.array([codes[:count]], dtype=np.int8)


@pytest.mark.requirement("F7.8")
@given(
    codes=st.lists(st.integers(-8, 7), min_size=1, max_size=9),
    wide=st.integers(0, 4),
    odd=st.data(),
)
def test_bytes_are_codes_and_back(codes: list[int], wide: int, odd: st.DataObject) -> None:
    from logitcache.encoding.transform import _packed, _unpacked

    wide = min(wide, len(codes))
    wide_codes = odd.draw(st.lists(st.integers(-127, 127), min_size=wide, max_size=wide))
    row = np.array([wide_codes + codes[wide:]], dtype=np.int8)
    packed = _packed(row, wide)
    assert packed.shape[1] == wide + -(-(len(codes) - wide) // 2)
    np.testing.assert_array_equal(_unpacked(packed, wide, len(codes)), row)
    np.testing.assert_array_equal(unpacked(packed[0], wide, len(codes)), row)


@pytest.mark.requirement("F7.7")
def test_rows_take_at_most_255_bytes_an_array() -> None:
    """The largest element that blosc shuffles."""
    sharp = Basis.of(PRINCIPAL, step=0.01)
    assert sharp.wide + -(-(sharp.count - sharp.wide) // 2) == sharp.code_bytes <= 255
    assert TransformEncoding.of(sharp, 200).specs()["refinements"].shape == (8 + 96,)


@pytest.mark.requirement("F7.11", "F7.12")
@given(seed=st.integers(0, 2**32 - 1))
def test_any_bytes_decode(seed: int) -> None:
    """A distribution for every row, NaN where the first byte is 128."""
    generator = np.random.default_rng(seed)
    arrays = {
        name: generator.integers(0, 256, (4, *spec.shape)).astype(np.uint8)
        for name, spec in ENCODING.specs().items()
    }
    arrays["coefficients"][0, 0] = 128
    arrays["coefficients"][1:, 0] &= 127
    found = ENCODING.decode(arrays).log_probs
    assert np.isnan(found[0]).all()
    np.testing.assert_allclose(np.exp(found[1:].astype(np.float64)).sum(axis=1), 1, atol=1e-5)


def test_it_is_faithful_at_every_temperature_where_a_sparse_one_is_not() -> None:
    found = measure_fidelity(ENCODING, HELD_OUT)
    row_bytes = packed_bytes(ENCODING.specs(), ENCODING.encode(HELD_OUT)) / len(HELD_OUT)
    sparse = [
        encoding
        for top_k in (10, 20, 30, 40, 50, 70)
        for encoding in [SparseEncoding(CLASSES, top_k, bits=5)]
        if packed_bytes(encoding.specs(), encoding.encode(HELD_OUT)) / len(HELD_OUT) <= row_bytes
    ]
    assert sparse
    best = measure_fidelity(sparse[-1], HELD_OUT)
    for temperature in (1.0, 2.0, 4.0):
        assert found.kl(temperature) < 0.03
    assert found.kl(4.0) < best.kl(4.0) / 3
    assert found.top1 > 0.95


@pytest.mark.requirement("F7.5", "F7.6", "F7.7")
@pytest.mark.parametrize(
    "change",
    [
        {"directions": 0},
        {"directions": BASIS.count + 1},
        {"wide": 0},
        {"wide": BASIS.count + 1},
        {"scale": 0.0},
        {"scale": 1025.0},
        {"scale": 1},
        {"step": 0.0},
        {"mean": "?"},
        {"mean": 7},
        {"mean": base64.b64encode(bytes(4 * CLASSES - 4)).decode()},
        {"mean": base64.b64encode(np.full(CLASSES, 2**24, "<i4").tobytes()).decode()},
        {"basis": base64.b64encode(bytes(BASIS.directions.size)).decode()},
        {"basis": base64.b64encode(bytes(BASIS.directions.size - 1)).decode()},
        {"refined": 0},
        {"refined": CLASSES + 1},
        {"refined": True},
        {"fine": -1},
        {"fine": 21},
        {"refined_step": 0.0},
        {"refined_step": 1025.0},
        {"refined_step": float("nan")},
    ],
    ids=lambda change: str(change)[:40],
)
def test_attributes_that_do_not_fit_are_refused(change: dict[str, Any]) -> None:
    values = ENCODING.to_json()
    assert parse_encoding(json.loads(json.dumps(values)), CLASSES, "") == ENCODING
    with pytest.raises(CacheError, match="the encoding of a group is invalid"):
        parse_encoding({**values, **change}, CLASSES, "here")


@pytest.mark.requirement("F7.7")
def test_too_many_bytes_are_refused() -> None:
    wide = replace(BASIS, directions=np.ones((256, CLASSES), np.int8), wide=256)
    with pytest.raises(CacheError):
        parse_encoding(replace(ENCODING, basis=wide).to_json(), CLASSES, "")


@pytest.mark.requirement("F7.4")
def test_a_reader_that_does_not_know_it_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    z = np.random.default_rng(0).normal(0, 2, (20, 10)).astype(np.float32)
    basis = Basis.of(principal_directions(log_softmax(z)[0]), 1.0)
    plain, transformed = SparseEncoding(10, 3), TransformEncoding.of(basis, 4)
    make_cache(tmp_path / "c", {"s": (plain, z), "t": (transformed, z)}, 20)
    assert "transform" in open_cache(tmp_path / "c").manifest.requires
    with monkeypatch.context() as older:
        older.delitem(FEATURES, "transform")
        with pytest.raises(UnsupportedFormat, match="transform"):
            open_cache(tmp_path / "c")
    drop_from_cache(tmp_path / "c", teachers=["t"])
    assert "transform" not in open_cache(tmp_path / "c").manifest.requires


@pytest.mark.requirement("F7.15")
def test_chunks_have_the_first_byte_of_all_rows_first(tmp_path: Path) -> None:
    z = np.random.default_rng(0).normal(0, 2, (20, 10)).astype(np.float32)
    basis = Basis.of(principal_directions(log_softmax(z)[0]), 0.5)
    encoding = TransformEncoding.of(basis, 4)
    make_cache(tmp_path / "c", {"t": (encoding, z)}, 20)
    for name, spec in encoding.specs().items():
        document = json.loads((tmp_path / "c/teachers/t" / name / "zarr.json").read_text())
        inner = document["codecs"][0]["configuration"]["codecs"]
        (blosc,) = [codec for codec in inner if codec["name"] == "blosc"]
        assert blosc["configuration"]["typesize"] == spec.shape[0]
        shard = next((tmp_path / "c/teachers/t" / name / "c").rglob("*/0/0")).read_bytes()
        assert shard[3] == spec.shape[0]  # the header of the first inner chunk
