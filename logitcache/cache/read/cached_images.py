"""The images of a cache as an image set, with the pixels where the cache contains them."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from logitcache.cache.format.names import Status
from logitcache.errors import CacheDamaged, UnreadableImage, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from logitcache.cache.read.reader import Cache
    from logitcache.label_sets import LabelSets

__all__ = ["CachedImages", "CachedRows"]


class CachedRows:
    """The images of a cache as an image set without pixels: keys, sizes and labels alone.

    Withdrawn images are left out. Instances can be pickled; a copy in another process opens files
    and connections for itself.

    Args:
        cache: A sealed cache.
    """

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        known = cache.samples
        self._rows = np.flatnonzero(
            (known.status == Status.OK) | (known.status == Status.UNREADABLE)
        )
        self.description = f"images of {cache.url}"
        self.class_names: Sequence[str] = cache.class_names

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._cache,)

    @cached_property
    def keys(self) -> Sequence[str]:
        """Key of every image."""
        keys: list[str] = self._cache.samples.keys[self._rows].tolist()
        return keys

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """Bytes of every image, int64 (N,)."""
        return self._cache.samples.sizes[self._rows]

    @cached_property
    def labels(self) -> NDArray[np.int32]:
        """Class of every image, int32 (N,); -1 without one."""
        return self._cache.samples.labels[self._rows]

    @cached_property
    def label_sets(self) -> LabelSets | None:
        """Classes of every image; None where an image has one class at most."""
        sets = self._cache.samples.label_sets
        return None if sets is None else sets.take(self._rows)

    def read(self, index: int) -> bytes:
        """Raise an error: images are not read from here.

        Raises:
            UsageError: Always.
        """
        raise UsageError(
            "the images of this cache are not available here",
            where=f"{self._cache.url}, {self.keys[index]}",
            hint="give the original images (--data)",
        )


class CachedImages(CachedRows):
    """The images in a cache as an image set: a :class:`logitcache.data.source.Source`.

    Args:
        cache: A sealed cache.

    Raises:
        UsageError: It contains no images.
    """

    def __init__(self, cache: Cache) -> None:
        images = cache.image_bytes
        if images is None:
            raise UsageError(
                "this cache does not contain its images",
                where=cache.url,
                hint="give the images that it was computed from (--data, or data=…); "
                "precompute --images packed stores them in a new cache",
            )
        super().__init__(cache)
        self.compared_with = cache
        self._images = images
        self.description = f"images in {cache.url}"

    def read(self, index: int) -> bytes:
        """Return the encoded bytes of an image.

        Raises:
            UnreadableImage: The original could not be decoded when the cache was computed.
            CacheDamaged: The bytes are not those that were committed.
        """
        row = int(self._rows[index])
        expected = self._cache.samples.digests[row].tobytes()
        image, digest = self._images.checked(row, expected)
        if not image:
            raise UnreadableImage(
                "the image could not be decoded when the cache was computed", where=self.keys[index]
            )
        if digest != expected:
            raise CacheDamaged(
                "an image in the cache is not the one that was committed",
                where=f"{self._cache.url}, {self.keys[index]}",
                expected=f"digest {expected.hex()}",
                got=f"digest {digest.hex()}",
                hint="logitcache verify lists all damage; logitcache repair fixes it",
            )
        return image
