from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from logitcache.encoding.codes import code_log_probs, codes_of
from logitcache.encoding.fidelity import measure_fidelity
from logitcache.encoding.sparse import SparseEncoding
from logitcache.encoding.tail import NO_TAIL, log_masses, tail_of
from tests.encoding.strategies import log_error_bound, log_probs_of, logits

if TYPE_CHECKING:
    from numpy.typing import NDArray


@pytest.mark.requirement("F6.8")
@pytest.mark.parametrize("bits", [4, 5, 6, 7, 8])
def test_codes_keep_the_bound_of_the_format(bits: int) -> None:
    levels = (1 << bits) - 1
    lowest = -8 * math.log(levels)
    log_probs = np.linspace(lowest, 0, 20001)
    codes = codes_of(log_probs, levels)
    assert codes.min() >= 1
    assert codes.max() == levels
    error = abs(code_log_probs(levels)[codes] - log_probs)
    bounds = np.array([log_error_bound(int(code)) for code in codes])
    assert (error <= bounds + 1e-12).all()


@pytest.mark.requirement("F6.8")
def test_the_bound_at_the_top_is_the_published_one() -> None:
    assert log_error_bound(255) == pytest.approx(0.0157, abs=5e-5)


def test_code_zero_is_absent() -> None:
    assert code_log_probs(255)[0] == -np.inf


@pytest.mark.requirement("F6.6")
@given(logits(), st.data())
def test_the_tail_is_the_logsumexp_of_the_absent(
    z: NDArray[np.float32], data: st.DataObject
) -> None:
    log_probs = log_probs_of(z)
    generator = np.random.default_rng(data.draw(st.integers(0, 100)))
    present = generator.random(z.shape) < 0.5
    tail = tail_of(log_probs, present)
    for row, kept, (mass, quarter) in zip(log_probs, present, tail, strict=True):
        absent = row[~kept]
        if not len(absent):
            assert (mass, quarter) == (NO_TAIL, NO_TAIL)
            continue
        for stored, b in ((mass, 1.0), (quarter, 0.25)):
            peak = (b * absent).max()
            exact = peak + math.log(sum(math.exp(b * value - peak) for value in absent))
            exact = max(exact if b < 1 else min(exact, 0.0), -65504.0)
            assert stored == np.float16(exact) or stored == pytest.approx(exact, rel=1e-3)


@pytest.mark.requirement("F6.6")
@pytest.mark.parametrize("least", [-100.0, -600.0, -667.0, -668.0, -700.0, -720.0, -760.0, -3000.0])
def test_masses_are_exact_down_to_those_that_no_float64_represents(least: float) -> None:
    log_probs = np.array([[-1e-300, least, least - 0.5, least - 3.0, least - 50.0]])
    present = np.array([[True, False, False, False, False]])
    found = log_masses(log_probs, present)
    for column, b in enumerate((1.0, 0.25)):
        terms = [math.exp(b * (value - least)) for value in log_probs[0, 1:]]
        assert found[0, column] == pytest.approx(b * least + math.log(math.fsum(terms)), rel=1e-14)


@pytest.mark.requirement("F6.6")
def test_the_tail_of_hopeless_classes_is_the_lowest_float16() -> None:
    log_probs = log_probs_of(np.array([[0, -102400, -3e5], [0, -3e5, -4e5]], dtype=np.float32))
    arrays = SparseEncoding(3, 1).encode(log_probs)
    assert arrays["tail"].tolist() == [[NO_TAIL, -25600.0], [NO_TAIL, NO_TAIL]]
    assert SparseEncoding(3, 1).decode(arrays).log_probs.tolist() == [[0.0], [0.0]]


@pytest.mark.requirement("F6.5", "F6.7", "F6.8")
@pytest.mark.parametrize("values", ["codes", "float16"])
@given(z=logits(), data=st.data())
def test_what_is_read_back_is_within_the_bound_and_sums_to_one(
    values: str, z: NDArray[np.float32], data: st.DataObject
) -> None:
    log_probs = log_probs_of(z)
    k = data.draw(st.integers(1, z.shape[1] - 1))
    encoding = SparseEncoding(z.shape[1], k, values)  # type: ignore[arg-type]  # parametrized as str
    arrays = encoding.encode(log_probs)
    decoded = encoding.decode(arrays)
    assert (np.diff(decoded.class_ids, axis=1) > 0).all()
    total = np.exp(decoded.log_probs.astype(np.float64)).sum(1) + np.exp(decoded.tail[:, 0])
    np.testing.assert_allclose(total, 1.0, atol=1e-5)
    exact = np.take_along_axis(log_probs, decoded.class_ids, axis=1)
    covered = exact >= -8 * math.log(255) if values == "codes" else exact > -60000
    error = abs(decoded.log_probs - exact)
    assert (error <= error_bounds(encoding, arrays))[covered].all()


@pytest.mark.requirement("F6.3")
@pytest.mark.parametrize("values", ["codes", "float16"])
@given(z=logits(), data=st.data())
def test_a_mass_that_is_enough_keeps_the_likeliest_classes_that_hold_it(
    values: str, z: NDArray[np.float32], data: st.DataObject
) -> None:
    log_probs = log_probs_of(z)
    k = data.draw(st.integers(1, z.shape[1] - 1))
    mass = data.draw(st.sampled_from([0.1, 0.5, 0.9, 0.999]))
    encoding = SparseEncoding(z.shape[1], k, values, mass=mass)  # type: ignore[arg-type]  # as above
    arrays = encoding.encode(log_probs)
    decoded = encoding.decode(arrays)
    for row, ids, found in zip(log_probs, decoded.class_ids, decoded.log_probs, strict=True):
        expected, held = [], 0.0
        for class_id in sorted(range(len(row)), key=lambda c: (-row[c], c))[:k]:
            if held < mass:
                expected.append(class_id)
            held += math.exp(row[class_id])
        used = np.isfinite(found)
        assert used[: len(expected)].all()
        assert not used[len(expected) :].any()
        assert ids[used].tolist() == sorted(expected)
    assert (arrays["class_ids"][~np.isfinite(decoded.log_probs)] == 0).all()
    total = np.exp(decoded.log_probs.astype(np.float64)).sum(1) + np.exp(decoded.tail[:, 0])
    np.testing.assert_allclose(total, 1.0, atol=1e-5)


def error_bounds(encoding: SparseEncoding, arrays: dict[str, NDArray[Any]]) -> NDArray[np.float64]:
    """Return the bound of every entry: its own, the row's scaling, the tail's rounding, float32."""
    if encoding.values == "codes":
        stored = code_log_probs(encoding.levels)[arrays["codes"]]
        own = np.vectorize(lambda code: log_error_bound(int(code)))(arrays["codes"])
    else:
        stored = arrays["logp_k"].astype(np.float64)
        own = 2.0**-11 * abs(stored)
    shift = np.log(np.exp(stored + own).sum(1) / np.exp(stored).sum(1))
    log_mass = arrays["tail"][:, 0].astype(np.float64)
    mass = np.minimum(np.exp(log_mass), 1 - 2.0**-11)
    tail = 2.0**-10 * abs(log_mass) * mass / (1 - mass)
    bounds: NDArray[np.float64] = own + (shift + tail)[:, None] + 1e-5 * (1 + abs(stored))
    return bounds


@pytest.mark.requirement("F6.4")
def test_ids_are_wide_where_classes_are_many() -> None:
    assert SparseEncoding(65536, 3).specs()["class_ids"].dtype == "uint16"
    assert SparseEncoding(65537, 3).specs()["class_ids"].dtype == "uint32"
    z = np.zeros((1, 70000), dtype=np.float32)
    z[0, [1, 66000, 69999]] = 9
    encoding = SparseEncoding(70000, 3)
    decoded = encoding.decode(encoding.encode(log_probs_of(z)))
    assert decoded.class_ids.tolist() == [[1, 66000, 69999]]


def test_adding_coding_costs_little() -> None:
    """KL of what is read back against the exact top K with the exact tail, in nats (design 6)."""
    generator = np.random.default_rng(0)
    z = generator.normal(size=(500, 1000)) * 2
    z[np.arange(500), generator.integers(0, 1000, 500)] += generator.normal(8, 3, 500)
    log_probs = log_probs_of(z.astype(np.float32))
    encoding = SparseEncoding(1000, 50)
    arrays = encoding.encode(log_probs)
    decoded = encoding.decode(arrays)
    exact = np.take_along_axis(log_probs, decoded.class_ids, axis=1)
    tail = np.log(1 - np.exp(exact).sum(1))
    kl = (np.exp(exact) * (exact - decoded.log_probs)).sum(1)
    kl += np.exp(tail) * (tail - decoded.tail[:, 0])
    assert 0 <= kl.mean() < 1e-4


@pytest.mark.requirement("F6.5")
def test_codes_are_rounded_eighth_roots() -> None:
    """To the nearest level, halves to even, and at least 1."""
    for bits in (4, 8):
        n = 2**bits - 1
        roots = np.array([0.0, 0.4, 1.0, 1.4, 2.6, n - 0.6, n - 0.4, n])
        with np.errstate(divide="ignore"):
            codes = codes_of(8 * np.log(roots / n), n)
        assert codes.tolist() == [1, 1, 1, 1, 3, n - 1, n, n]
        np.testing.assert_allclose(np.exp(code_log_probs(n)), (np.arange(n + 1) / n) ** 8)


@pytest.mark.requirement("F6.5.1", "F6.8")
@given(z=logits(), data=st.data())
def test_relative_codes_are_those_of_p_over_the_largest_p(
    z: NDArray[np.float32], data: st.DataObject
) -> None:
    log_probs = log_probs_of(z)
    k = data.draw(st.integers(1, z.shape[1] - 1))
    mass = data.draw(st.sampled_from([None, 0.5, 0.999]))
    absolute = SparseEncoding(z.shape[1], k, bits=data.draw(st.integers(4, 8)), mass=mass)
    relative = replace(absolute, relative=True)
    before, arrays = absolute.encode(log_probs), relative.encode(log_probs)
    assert before.keys() == arrays.keys()
    for name in before.keys() - {"codes"}:
        np.testing.assert_array_equal(arrays[name], before[name])
    codes: NDArray[Any] = arrays["codes"]
    ids, n = absolute.decode(before).class_ids, absolute.levels
    for row, ids_K, codes_K in zip(log_probs, ids, codes, strict=True):
        logs = [row[c] - max(row) for c, code in zip(ids_K, codes_K, strict=True) if code]
        assert codes_K.max() == n, "the most probable class has the largest code"
        for value, code in zip(logs, codes_K, strict=False):
            assert abs(code - max(1.0, n * math.exp(value / 8))) <= 0.5 + 1e-9
            error = abs(8 * math.log(code / n) - value)
            assert value < -8 * math.log(n) or error <= log_error_bound(int(code)) + 1e-9


@pytest.mark.requirement("F6.5.1", "F6.7")
@given(z=logits(), bits=st.integers(4, 8))
def test_reading_does_not_depend_on_whether_codes_are_relative(
    z: NDArray[np.float32], bits: int
) -> None:
    relative = SparseEncoding(z.shape[1], 2, bits=bits, relative=True)
    arrays = relative.encode(log_probs_of(z))
    older = replace(relative, relative=False).decode(arrays)
    found = relative.decode(arrays)
    np.testing.assert_array_equal(found.log_probs, older.log_probs)
    np.testing.assert_array_equal(found.class_ids, older.class_ids)


def test_relative_codes_lose_less_where_no_class_is_certain() -> None:
    z = np.random.default_rng(0).normal(0, 2.5, (400, 200)).astype(np.float32)
    absolute = SparseEncoding(200, 50, bits=5)
    losses = [
        measure_fidelity(encoding, log_probs_of(z)).losses[1.0].coding
        for encoding in (absolute, replace(absolute, relative=True))
    ]
    assert losses[1] < 0.75 * losses[0]


@pytest.mark.requirement("F6.4", "F6.5")
def test_entries_that_are_not_used_trail_with_difference_0() -> None:
    log_probs = np.log(np.array([[0.01, 0.9, 0.04, 0.05]]))
    arrays = SparseEncoding(4, 3, "float16", mass=0.92).encode(log_probs)
    assert arrays["class_ids"].tolist() == [[1, 2, 0]], "1 and 3"
    assert np.isnan(arrays["logp_k"]).tolist() == [[False, False, True]]
    codes: NDArray[Any] = SparseEncoding(4, 3, mass=0.92).encode(log_probs)["codes"]
    assert (codes > 0).tolist() == [[True, True, False]]
