"""Exclusion of images from training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from logitcache.cache.read.exclusions import write_withdrawal
from logitcache.cache.read.reader import open_cache
from logitcache.cache.store.open import locate
from logitcache.cache.write.claims import MANIFEST, Claims
from logitcache.cache.write.writer import CacheWriter
from logitcache.errors import UsageError, nearest

if TYPE_CHECKING:
    import os
    from collections.abc import Collection

    from logitcache.cache.store.base import Location

__all__ = ["withdraw_images"]


def withdraw_images(url: str | os.PathLike[str], keys: Collection[str], reason: str) -> int:
    """Exclude images: students are not trained on them, and the data may lack them.

    Committed outputs stay as they are; a new revision names the withdrawal.

    Args:
        url: A sealed cache.
        keys: Names of the images, as in ``samples/key``.
        reason: Reason, as text.

    Returns:
        Number of all images that are excluded now.

    Raises:
        UsageError: The cache does not have an image.
    """
    location = locate(url, write=True)
    with Claims(location).exclusive(MANIFEST):
        return _withdraw(location, keys, reason)


def _withdraw(location: Location, keys: Collection[str], reason: str) -> int:
    samples = open_cache(location).samples
    known = set(samples.keys[samples.rows - samples.start])
    unknown = sorted(set(keys) - known)
    if unknown:
        raise UsageError(
            f"{len(unknown)} of the images to exclude are not in the cache",
            where=location,
            expected="names relative to the data root",
            got=", ".join(unknown[:3]),
            hint=nearest(unknown[0], known),
        )
    write_withdrawal(location, keys, reason)
    CacheWriter.open(location).reseal(())  # from here on the revision lists it
    return open_cache(location).samples.withdrawn
