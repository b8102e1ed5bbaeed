"""The join of a source with the images of a cache against plain dictionaries."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from logitcache.data.identity import content_digest, key_hash
from logitcache.data.join import ImageJoin, NamedKeys, check_content, is_same_content
from logitcache.data.readers.arrays import ArraySource
from logitcache.errors import DataMismatch

CLASSES = ["cat", "dog"]


def source_of(keys: list[str], sizes: list[int], labels: list[int]) -> ArraySource:
    images = [np.zeros((2, 2), dtype=np.uint8) for _ in keys]
    source = ArraySource("test", "train", images, np.array(labels, np.int32), CLASSES)
    source.keys, source.sizes = keys, np.array(sizes, np.int64)
    return source


def keys_of(names: list[str]) -> np.ndarray:
    found = np.empty(len(names), dtype=object)
    found[:] = names
    return found


KEYS = st.lists(st.sampled_from([f"k{i}" for i in range(12)]), unique=True)
SIZES = st.lists(st.integers(-1, 2), min_size=12, max_size=12)
LABELS = st.lists(st.integers(-1, 1), min_size=12, max_size=12)


@given(KEYS, KEYS, SIZES, SIZES, LABELS, LABELS, st.integers(1, 5), st.booleans())
def test_it_is_the_join_of_two_dictionaries(
    known: list[str],
    own: list[str],
    known_sizes: list[int],
    own_sizes: list[int],
    known_labels: list[int],
    own_labels: list[int],
    at_once: int,
    hashed: bool,
) -> None:
    source = source_of(own, own_sizes[: len(own)], own_labels[: len(own)])
    join = ImageJoin(source, CLASSES[::-1])  # the cache numbers the classes the other way round
    for start in range(0, len(known), at_once):
        part = slice(start, min(start + at_once, len(known)))
        hashes = np.array([key_hash(key) for key in known[part]], np.uint64) if hashed else None
        joined = join.find(
            keys_of(known[part]),
            hashes,
            np.array(known_sizes[part], np.int64),
            np.array(known_labels[part], np.int32),
        )
        for index, key in enumerate(known[part], start):
            at = own.index(key) if key in own else -1
            assert joined.positions[index - start] == at
            assert joined.found[index - start] == (at >= 0)
            sizes = (known_sizes[index], own_sizes[at])
            resized = at >= 0 and min(sizes) >= 0 and sizes[0] != sizes[1]
            assert joined.resized[index - start] == resized
            labels = (known_labels[index], own_labels[at])
            relabeled = at >= 0 and min(labels) >= 0 and labels[0] == labels[1]
            assert joined.relabeled[index - start] == relabeled
    assert [own[position] for position in join.added()] == [k for k in own if k not in known]


def test_a_class_that_the_cache_does_not_have_is_another_class() -> None:
    join = ImageJoin(source_of(["a", "b"], [1, 1], [0, 1]), ["dog"])
    joined = join.find(keys_of(["a", "b"]), labels=np.array([0, 0], np.int32))
    assert joined.relabeled.tolist() == [True, False]


def test_what_is_not_given_is_not_compared() -> None:
    joined = ImageJoin(source_of(["a"], [1], [0])).find(
        keys_of(["a"]), labels=np.array([1], np.int32)
    )
    assert not joined.resized.any()
    assert not joined.relabeled.any()


def test_all_keys_are_counted_and_the_first_are_named() -> None:
    named = NamedKeys()
    assert f"{named:missing}" == "0 missing"
    named.add(keys_of(["a", "gone"]), allowed={"gone"})
    assert f"{named:missing}" == "1 missing: a"
    named.add(keys_of(["b", "c", "d"]))
    named.add(keys_of(["e"]))
    assert f"{named:of another size}" == "5 of another size: a, b, c, …"


def test_contents_are_compared_by_digest() -> None:
    digest = np.frombuffer(content_digest(b"image"), np.uint8)
    check_content(b"image", digest, "a.jpg")
    assert is_same_content(b"image", digest)
    assert not is_same_content(b"other", digest)
    with pytest.raises(DataMismatch, match="not the one that the teachers were given") as error:
        check_content(b"other", digest, "a.jpg")
    assert error.value.where == "a.jpg"
    assert content_digest(b"other").hex() in str(error.value)
