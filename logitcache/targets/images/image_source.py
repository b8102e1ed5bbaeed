"""The images of a cache: those in it, or those that a user gives."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from logitcache.cache.read.cached_images import CachedImages, CachedRows
from logitcache.data.identity import content_digest
from logitcache.data.join import ImageJoin
from logitcache.data.readers import open_source_for
from logitcache.errors import DataMismatch

if TYPE_CHECKING:
    from logitcache.cache.read.image_bytes import ImageBytes
    from logitcache.cache.read.reader import Cache
    from logitcache.data.readers import ImageSet
    from logitcache.data.source import Source

__all__ = ["contains_images", "images_of"]


def contains_images(cache: Cache) -> bool:
    """Return whether students need no other images: they, or their views, are in the cache."""
    return cache.image_bytes is not None or cache.squares is not None


def images_of(cache: Cache, data: ImageSet | None, *, counterparts: bool = False) -> Source:
    """Return the images that are matched with the rows of a cache.

    Args:
        cache: An open cache.
        data: Images as for ``--data``; None for those in the cache.
        counterparts: Whether they are others with the same keys, which originals may be.

    Raises:
        UsageError: No images are given, and the cache contains none.
        DataMismatch: The images are the originals of what is in the cache.
    """
    if data is None:
        return CachedImages(cache) if cache.squares is None else CachedRows(cache)
    if cache.squares is not None and not counterparts:
        raise DataMismatch(
            "the cache contains the views of its images, which its teachers were run on",
            where=cache.url,
            expected="the views in the cache",
            got="other images",
            hint="omit --data (in Python: data=None)",
        )
    source = open_source_for(data, (), "", listing=cache.listing)
    if cache.image_bytes is not None and not counterparts:
        _refuse_originals(cache, cache.image_bytes, source)
    return source


def _refuse_originals(cache: Cache, images: ImageBytes, source: Source) -> None:
    """Raise an error if the first image that the cache has, too, is its original."""
    for samples in cache.all_samples():
        rows = samples.readable
        here = rows - samples.start
        positions = ImageJoin(source).find(samples.keys[here], samples.hashes[here]).positions
        found = np.flatnonzero(positions >= 0)
        if not len(found):
            continue
        row = int(rows[found[0]])
        digest = content_digest(source.read(int(positions[found[0]])))
        if digest == images.source_digest(row):
            raise DataMismatch(
                "these are the original images, and the cache was computed from smaller copies "
                "that it contains",
                where=cache.url,
                expected="the images in the cache",
                got=f"{source.description}: {samples.keys[row - samples.start]} is an original",
                hint="omit --data (in Python: data=None)",
            )
        return
