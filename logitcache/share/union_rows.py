"""Rows of several caches together: which row of each cache is which row of the new one.

Shapes: N rows of the new cache; M images of a source.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from logitcache.share.rows import NO_ROW, RowPlan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from logitcache.share.source import SourceCache

__all__ = ["union_of_rows"]


@dataclass(frozen=True)
class _Images:
    """Images of one source.

    Attributes:
        rows: Their rows, int64 (M,).
        keys: Their keys, in the order of the rows.
    """

    rows: NDArray[np.int64]
    keys: list[str]


def union_of_rows(sources: Sequence[SourceCache], *, append: bool) -> RowPlan:
    """Return the rows of all sources, those of equal keys as one.

    Where the first source has all images, rows and segments are its own. Otherwise they are those
    of a cache that is computed of all images at once: one segment, ordered by (hash, key).

    Args:
        sources: The caches.
        append: Whether images that the first sources do not have are added as further segments, as
            if they had been added to the cache later.
    """
    images = [_images_of(source) for source in sources]
    known: dict[str, None] = dict.fromkeys(images[0].keys)
    segments = [_segments_of(sources[0], images[0])]
    for source, found in zip(sources[1:], images[1:], strict=True):
        segments.append(
            [[k for k in part if k not in known] for part in _segments_of(source, found)]
        )
        known |= dict.fromkeys(found.keys)
    parts = [part for found in segments for part in found if part]
    if len(known) > len(images[0].keys) and not append:
        hashes: dict[str, int] = {}
        for source, found in zip(sources, images, strict=True):
            hashes |= zip(found.keys, source.samples("hash")[found.rows].tolist(), strict=True)
        parts = [sorted(known, key=lambda key: (hashes[key], key.encode()))]
    positions = [dict(zip(found.keys, found.rows.tolist(), strict=True)) for found in images]
    return RowPlan.of_parts(
        sources[0].cache.unit_rows,
        [
            [np.array([own.get(key, NO_ROW) for key in part], np.int64) for own in positions]
            for part in parts
        ],
    )


def _images_of(source: SourceCache) -> _Images:
    rows = np.flatnonzero(source.has_image)
    return _Images(rows, source.samples("key")[rows].tolist())


def _segments_of(source: SourceCache, images: _Images) -> list[list[str]]:
    """Return the keys of each segment."""
    ends = np.cumsum([count for _, count in source.segments]).tolist()
    starts = [0, *ends[:-1]]
    return [images.keys[start:end] for start, end in zip(starts, ends, strict=True)]
