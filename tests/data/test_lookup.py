from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from logitcache.data import lookup
from logitcache.data.lookup import KeyIndex, key_hash, key_hashes, position_dtype

if TYPE_CHECKING:
    import pytest


def find(index: KeyIndex, keys: list[str]) -> list[int]:
    hashes = np.array([key_hash(key) for key in keys], dtype=np.uint64)
    return [int(position) for position in index.find(keys, hashes)]


@given(keys=st.lists(st.text(max_size=4), unique=True, max_size=40), other=st.text(max_size=5))
def test_every_key_is_found_where_it_is(keys: list[str], other: str) -> None:
    index = KeyIndex(keys)
    assert find(index, keys) == list(range(len(keys)))
    assert find(index, [other]) == [keys.index(other) if other in keys else -1]
    ordered = [keys[i] for i in index.order()]
    assert ordered == sorted(keys, key=lambda key: (key_hash(key), key))


def test_keys_whose_hashes_begin_alike_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashes of 6 values among 400 keys, so that all words are in runs; read in small parts."""
    monkeypatch.setattr(lookup, "key_hash", lambda key: (int(key) % 6) << 60)
    monkeypatch.setattr(lookup, "_AT_ONCE", 7)
    keys = [str(number) for number in np.random.default_rng(0).permutation(400)]
    index = KeyIndex(keys)
    hashes = np.array([(int(key) % 6) << 60 for key in keys], dtype=np.uint64)
    assert index.find(keys, hashes).tolist() == list(range(400))
    assert index.find(["400"], np.array([(400 % 6) << 60], dtype=np.uint64)).tolist() == [-1]
    ordered = [keys[i] for i in index.order()]
    assert ordered == sorted(keys, key=lambda key: (int(key) % 6, key))


def test_hashes_and_dtypes() -> None:
    assert key_hashes(["a", "b"], np.array([1])).tolist() == [key_hash("b")]
    assert position_dtype(2**31 - 1) is np.int32
    assert position_dtype(2**31) is np.int64
    assert len(KeyIndex([]).order()) == 0
