from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from logitcache.data.identity import (
    content_digest,
    fingerprint,
    key_hash,
    listing_digest,
    normalize_key,
    row_order,
    stored_bytes,
)
from logitcache.data.readers.arrays import ArraySource
from logitcache.errors import DataError


def source_of(keys: list[str]) -> ArraySource:
    images = [np.full((2, 2), i % 256, dtype=np.uint8) for i in range(len(keys))]
    source = ArraySource("test", "train", images, np.zeros(len(keys), np.int32), ["a"])
    source.keys = keys
    return source


@pytest.mark.requirement("F3.3")
def test_hash_and_digest_are_as_the_format_says() -> None:
    digest = hashlib.blake2b("cat/ü.jpg".encode(), digest_size=8).digest()
    assert key_hash("cat/ü.jpg") == int.from_bytes(digest, "big")
    assert content_digest(b"abc") == hashlib.blake2b(b"abc", digest_size=16).digest()
    pixels = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert stored_bytes(pixels) == b"uint8\x002,3\x00\x00\x01\x02\x03\x04\x05"
    assert content_digest(pixels) == hashlib.blake2b(stored_bytes(pixels), digest_size=16).digest()


def test_pixels_of_another_shape_have_another_digest() -> None:
    flat = np.arange(6, dtype=np.uint8)
    assert content_digest(flat.reshape(2, 3)) != content_digest(flat.reshape(3, 2))


@pytest.mark.requirement("F3.1")
def test_keys_are_relative_and_composed() -> None:
    assert normalize_key("./a/b.jpg") == "a/b.jpg"
    assert normalize_key("cafe\u0301/x.png") == "caf\u00e9/x.png"


@pytest.mark.requirement("F3.4")
@given(st.permutations([f"k{i}" for i in range(12)]))
def test_rows_do_not_depend_on_the_listing(keys: list[str]) -> None:
    rows = row_order(source_of(keys))
    assert [keys[i] for i in rows] == sorted(keys, key=lambda k: (key_hash(k), k))


@pytest.mark.requirement("F3.2")
def test_two_images_with_one_key() -> None:
    with pytest.raises(DataError, match="same key"):
        row_order(source_of(["a", "b", "a"]))


def test_fingerprints_tell_names_and_contents_apart() -> None:
    one, two = b"1" * 16, b"2" * 16
    prints = {
        fingerprint([("a", one), ("b", two)]),
        fingerprint([("a", two), ("b", one)]),
        fingerprint([("b", one), ("a", two)]),
    }
    assert len(prints) == 3


def test_a_listing_is_known_by_keys_and_labels() -> None:
    source = source_of(["a", "b"])
    before = listing_digest(source, row_order(source))
    source.labels = np.array([0, 1], np.int32)
    assert listing_digest(source, row_order(source)) != before


@pytest.mark.requirement("F12.2", "F12.3")
def test_a_fingerprint_is_over_keys_and_digests_and_a_listing_over_keys_and_labels() -> None:
    one, two = b"1" * 16, b"2" * 16
    expected = hashlib.sha256(b"a\0" + one + "ü\0".encode() + two).hexdigest()
    assert fingerprint([("a", one), ("ü", two)]) == expected
    source = source_of(["b", "ü"])
    source.labels = np.array([3, -1], np.int32)
    expected = hashlib.sha256("ü\0-1\0b\x003\0".encode()).hexdigest()
    assert listing_digest(source, np.array([1, 0])) == expected


@pytest.mark.requirement("F3.1")
def test_images_without_files_are_named_by_split_and_nine_digits() -> None:
    images = [np.zeros((2, 2), dtype=np.uint8)] * 2
    source = ArraySource("test", "train", images, np.zeros(2, np.int32), ["a"])
    assert list(source.keys) == ["train/000000000", "train/000000001"]
