"""Facts about the images of a cache that is made from others, from one pass over their samples.

Shapes: N rows of the new cache up to the end of its last block.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from logitcache.cache.format.samples import samples_from
from logitcache.data.identity import fingerprint
from logitcache.label_sets import label_texts
from logitcache.share.gathering import GatheredRows

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from logitcache.cache.format.samples import Samples
    from logitcache.share.rows import RowPlan
    from logitcache.share.source import SourceCache
    from logitcache.share.view_plan import ViewPlan

__all__ = ["ImageFacts", "image_facts"]


@dataclass(frozen=True)
class ImageFacts:
    """What the samples of the new cache determine.

    Attributes:
        fingerprint: SHA-256 over key and digest of all images.
        listings: SHA-256 over key, NUL, label, NUL of the images of each segment.
        labels: Class of each row, int32 (N,); -1 for those without one, and unreadable images.
        excluded: Keys of images that a source has excluded from training.
    """

    fingerprint: str
    listings: tuple[str, ...]
    labels: NDArray[np.int32]
    excluded: frozenset[str]


class _Origins(NamedTuple):
    sources: tuple[SourceCache, ...]
    rows: RowPlan


def image_facts(sources: Sequence[SourceCache], rows: RowPlan, samples: ViewPlan) -> ImageFacts:
    """Return facts about the images of a cache.

    Args:
        sources: The caches that it is made from.
        rows: Its rows.
        samples: Its samples.
    """
    starts = [start for start, _ in rows.segments]
    listings = [hashlib.sha256() for _ in starts]
    labels = np.full(len(rows.rows[0]), -1, np.int32)
    withdrawn = frozenset[str]().union(*(source.cache.withdrawn for source in sources))
    excluded: set[str] = set()

    def digested() -> Iterator[tuple[str, bytes]]:
        for block in _blocks(_Origins(tuple(sources), rows), samples):
            here = block.rows - block.start
            keys = block.keys[here].tolist()
            listing = listings[int(np.searchsorted(starts, block.start, "right")) - 1]
            for key, label in zip(keys, label_texts(block, here), strict=True):
                listing.update(f"{key}\0{label}\0".encode())
            readable = block.readable - block.start
            labels[block.readable] = block.labels[readable]
            excluded.update(withdrawn.intersection(keys) if withdrawn else ())
            yield from zip(keys, map(bytes, block.digests[here]), strict=True)

    return ImageFacts(
        fingerprint=fingerprint(digested()),
        listings=tuple(listing.hexdigest() for listing in listings),
        labels=labels,
        excluded=frozenset(excluded),
    )


def _blocks(origins: _Origins, samples: ViewPlan) -> Iterator[Samples]:
    """Yield the samples block by block; exclusions are not applied."""
    gathered = GatheredRows(origins, samples)
    for unit in samples.units(origins.rows):
        arrays, _ = gathered.of(unit)
        yield samples_from(arrays, unit * samples.placement.unit_rows)
