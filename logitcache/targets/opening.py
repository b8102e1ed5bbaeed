"""A cache and the images at hand, ready for a loader."""

from __future__ import annotations

from typing import TYPE_CHECKING

from logitcache.cache.read.reader import open_cache
from logitcache.cache.read.shard_cache import DEFAULT_COPY_BYTES
from logitcache.data.readers import open_source_for
from logitcache.targets.loader import DEFAULT_TARGET_MEMORY, Targets
from logitcache.targets.probes import checked_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from logitcache.data.readers import DataConfig
    from logitcache.data.source import Source
    from logitcache.targets.match import ImageRows

__all__ = ["cached_targets"]


def cached_targets(
    url: str,
    data: DataConfig | Source,
    teachers: Sequence[str] | None = None,
    features: Sequence[str] = (),
    *,
    views: Sequence[str] = (),
    target_memory: int = DEFAULT_TARGET_MEMORY,
    shuffled: bool = False,
    subset: bool = False,
    tolerate_pixel_drift: int = 0,
    local_copy: str | None = None,
    local_copy_bytes: int = DEFAULT_COPY_BYTES,
    revision: str | None = None,
) -> tuple[ImageRows, Targets]:
    """Open a cache, match it with the images at hand, and render its probes.

    Args:
        url: The cache.
        data: The images.
        teachers: Whose answers; all teachers by default, none for an empty list.
        features: Which taps of their networks, as ``<teacher>/<tap>``.
        views: Which views of the cache; all by default.
        target_memory: Bytes that targets may take.
        shuffled: Whether every row gets another row's answer, as a control.
        subset: Whether images of the cache may be missing.
        tolerate_pixel_drift: Largest difference of a level, 0 to 255, between probes rendered here
            and when the cache was made.
        local_copy: Folder in which shards of a distant cache are kept; the user's cache folder by
            default.
        local_copy_bytes: What that folder may take; 0 to keep nothing.
        revision: sha256 of the revision that it must have, or the first 12 digits or more.
    """
    cache = open_cache(
        url, local_copy=local_copy, local_copy_bytes=local_copy_bytes, revision=revision
    )
    targets = Targets.of(
        cache, teachers, features, views=views, target_memory=target_memory, shuffled=shuffled
    )
    source = open_source_for(data, (), "", listing=cache.listing)
    rows = checked_rows(cache, source, subset=subset, tolerate_pixel_drift=tolerate_pixel_drift)
    return rows, targets
