from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from logitcache.encoding.topk import delta_decode, delta_encode, enough_mask, top_k_mask
from tests.encoding.strategies import logits

if TYPE_CHECKING:
    from numpy.typing import NDArray


@pytest.mark.requirement("F6.2")
@given(logits(), st.data())
def test_the_largest_win_and_ties_go_to_the_lowest_id(
    z: NDArray[np.float32], data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, z.shape[1] - 1))
    mask = top_k_mask(z, k)
    for row, kept in zip(z, mask, strict=True):
        expected = sorted(range(len(row)), key=lambda c: (-row[c], c))[:k]
        assert sorted(np.flatnonzero(kept)) == sorted(expected)


@pytest.mark.requirement("F6.2")
@pytest.mark.parametrize("k", [1, 50, 128])
@pytest.mark.parametrize("levels", [3, 200, 10**9], ids=["ties", "some-ties", "no-ties"])
def test_many_classes_are_ranked_like_few(k: int, levels: int) -> None:
    generator = np.random.default_rng(k)
    scores = generator.integers(0, levels, (5, 4096 + 37)) / levels
    scores[0] = 0.25  # all are equal
    scores[1, -20:] += 1.0  # the largest are in no whole group
    for row, kept in zip(scores, top_k_mask(scores, k), strict=True):
        expected = np.argsort(-row, kind="stable")[:k]
        assert set(np.flatnonzero(kept)) == set(expected)


@pytest.mark.requirement("F6.2")
@pytest.mark.parametrize("classes", [16, 100, 1000])
def test_of_equal_classes_the_lowest_ids_reach_a_mass(classes: int) -> None:
    # powers of two: sums of them are exact. Even ids are twice as probable as odd ones.
    weights = 2.0 ** -np.array([10, 11] * (classes // 2))
    present = np.ones((1, classes), dtype=np.bool_)
    present[0, ::6] = False
    kept = np.flatnonzero(present)
    ranked = sorted(kept, key=lambda c: (-weights[c], c))
    before = np.cumsum(weights[ranked]) - weights[ranked]
    for mass in (2.0**-11, 3 * 2.0**-10, weights[kept].sum() * 0.4, weights[kept].sum() * 0.9):
        needed = enough_mask(np.log(weights)[None], present, mass - 2.0**-13)
        expected = [c for c, held in zip(ranked, before, strict=True) if held < mass - 2.0**-13]
        assert np.flatnonzero(needed).tolist() == sorted(expected)


@pytest.mark.requirement("F6.4")
@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
@given(data=st.data())
def test_ids_survive_their_differences(dtype: str, data: st.DataObject) -> None:
    top = np.iinfo(dtype).max
    ids = np.array([sorted(data.draw(st.sets(st.integers(0, top), min_size=4, max_size=4)))])
    deltas = delta_encode(ids, dtype)
    assert deltas.dtype == dtype
    assert (delta_decode(deltas) == ids).all()


def test_an_absent_entry_repeats_the_last_id() -> None:
    assert delta_decode(np.array([[3, 4, 0, 0]], dtype=np.uint16)).tolist() == [[3, 7, 7, 7]]
