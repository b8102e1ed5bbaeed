"""Contract of a source of images."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from logitcache.data.decode import decode
from logitcache.data.identity import content_digest, row_order, stored_bytes
from logitcache.data.lookup import key_hashes

if TYPE_CHECKING:
    from logitcache.data.source import Source

__all__ = ["SourceContract"]


class SourceContract:
    """Tests that every :class:`~logitcache.data.source.Source` passes.

    Define a fixture ``source`` that returns one with at least ten images.
    """

    def test_everything_is_as_long_as_the_keys(self, source: Source) -> None:
        """Sizes and labels have one element per key."""
        count = len(source.keys)
        assert count >= 10
        assert source.sizes.shape == source.labels.shape == (count,)

    def test_keys_are_unique_and_relative(self, source: Source) -> None:
        """No key occurs twice or leads out of the source."""
        assert len(set(source.keys)) == len(source.keys)
        assert not any(key.startswith(("/", "./")) or ".." in key for key in source.keys)

    def test_labels_name_classes(self, source: Source) -> None:
        """Labels are indices of class names, or -1."""
        assert source.labels.min() >= -1
        assert source.labels.max() < max(1, len(source.class_names))

    def test_sizes_are_those_of_what_is_read(self, source: Source) -> None:
        """A size is -1 or the number of bytes of the image as it is digested."""
        for index in range(10):
            assert source.sizes[index] in {-1, len(stored_bytes(source.read(index)))}

    def test_an_image_is_the_same_every_time_and_in_every_thread(self, source: Source) -> None:
        """Reading is deterministic and thread-safe."""
        once = [content_digest(source.read(index)) for index in range(10)]
        with ThreadPoolExecutor(4) as pool:
            again = list(pool.map(lambda i: content_digest(source.read(i % 10)), range(200)))
        assert again == once * 20

    def test_images_decode_to_rgb(self, source: Source) -> None:
        """An image is decoded to integers with three channels."""
        pixels = decode(source.read(0))
        assert pixels.dtype.is_floating_point is False
        assert pixels.shape[0] == 3

    def test_it_can_be_pickled(self, source: Source) -> None:
        """Worker processes get an equal source."""
        copy: Source = pickle.loads(pickle.dumps(source))
        assert list(copy.keys) == list(source.keys)
        assert content_digest(copy.read(3)) == content_digest(source.read(3))

    def test_rows_are_ordered_by_hash(self, source: Source) -> None:
        """Key hashes are unique, so that rows have one order."""
        rows = row_order(source)
        assert sorted(rows) == list(range(len(source.keys)))
        assert (np.diff(key_hashes(source.keys, rows).astype(object)) > 0).all()
