from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from logitcache.draws import Purpose, permutation, unit_floats, words

WORD = st.integers(0, 2**64 - 1)


@pytest.mark.requirement("V3.1")
@given(seed=WORD, hash_=WORD, draw=st.integers(0, 2**32 - 1), purpose=st.sampled_from(Purpose))
def test_words_are_those_of_numpys_philox(
    seed: int, hash_: int, draw: int, purpose: Purpose
) -> None:
    ours = words(seed, [hash_], draw=draw, purpose=purpose, count=41)[0]
    theirs = np.random.Philox(
        counter=np.array([0, draw, purpose, 0], dtype=np.uint64),
        key=np.array([seed, hash_], dtype=np.uint64),
    )
    assert (ours == theirs.random_raw(41)).all()


@pytest.mark.requirement("V1.1")
def test_words_do_not_depend_on_who_else_draws() -> None:
    hashes = np.arange(50, dtype=np.uint64)
    together = words(1, hashes, draw=2, purpose=Purpose.CROP, count=7)
    alone = [words(1, h, draw=2, purpose=Purpose.CROP, count=7)[0] for h in hashes]
    assert (together == np.array(alone)).all()


def test_fewer_words_are_a_prefix_of_more() -> None:
    many = words(1, [5], draw=0, purpose=Purpose.FLIP, count=40)
    few = words(1, [5], draw=0, purpose=Purpose.FLIP, count=3)
    assert (many[:, :3] == few).all()
    assert words(1, [5], draw=0, purpose=Purpose.FLIP, count=0).shape == (1, 0)


@pytest.mark.requirement("V3.2")
def test_unit_floats_are_below_one_and_use_53_bits() -> None:
    extremes = np.array([0, 2**64 - 1, 1 << 11], dtype=np.uint64)
    assert unit_floats(extremes).tolist() == [0.0, 1.0 - 2.0**-53, 2.0**-53]


def test_addresses_give_independent_uniform_words() -> None:
    drawn = unit_floats(words(0, np.arange(4000), draw=1, purpose=Purpose.CROP, count=4))
    assert abs(drawn.mean() - 0.5) < 0.01
    assert abs(np.corrcoef(drawn.T) - np.eye(4)).max() < 0.05


@given(size=st.integers(0, 300), draw=st.integers(0, 5), stream=st.integers(0, 5))
def test_a_permutation_holds_everything_once(size: int, draw: int, stream: int) -> None:
    order = permutation(3, size, draw=draw, purpose=Purpose.ROW_ORDER, stream=stream)
    assert sorted(order) == list(range(size))


def test_permutations_differ_between_addresses() -> None:
    orders = {
        tuple(permutation(s, 20, draw=d, purpose=p, stream=t))
        for s in (0, 1)
        for d in (0, 1)
        for p in (Purpose.ROW_ORDER, Purpose.UNIT_ORDER)
        for t in (0, 1)
    }
    assert len(orders) == 16
