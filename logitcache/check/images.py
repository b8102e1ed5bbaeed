"""Comparison of a source with the images of a cache: keys, sizes, contents and classes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from logitcache.cache.format.names import Status
from logitcache.data.identity import listing_digest
from logitcache.data.join import ImageJoin, is_same_content
from logitcache.data.source import left_out_of
from logitcache.platforms import available_processors

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from logitcache.cache.read.reader import Cache
    from logitcache.data.source import Source

__all__ = ["ImagesReport", "check_images"]


@dataclass(frozen=True)
class ImagesReport:
    """How a source differs from the images of a cache; order and root folder do not matter.

    Attributes:
        images: Images of the cache.
        digested: Number of images that were read and digested.
        missing: Keys that the source lacks and that were not withdrawn.
        resized: Keys of images with another number of bytes.
        replaced: Keys of images with as many bytes, but other ones.
        relabeled: Keys of images with another class name; images without a class count as equal.
        relisted: First rows of the segments whose keys and labels differ from those that were
            listed when they were added.
        added: Keys that the cache does not have; precompute adds them as a segment.
        withdrawn: Number of withdrawn images.
        unreadable: Number of images that could not be decoded when the cache was computed.
        left_out: Numbers of files of the source that are not used as images, by reason.
    """

    images: int
    digested: int
    missing: tuple[str, ...]
    resized: tuple[str, ...]
    replaced: tuple[str, ...]
    relabeled: tuple[str, ...]
    relisted: tuple[int, ...]
    added: tuple[str, ...]
    withdrawn: int
    unreadable: int
    left_out: dict[str, int]

    @property
    def ok(self) -> bool:
        """Whether every image of the cache exists, is unchanged and has the same class."""
        different = (self.missing, self.resized, self.replaced, self.relabeled, self.relisted)
        return not any(different)

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {**asdict(self), "ok": self.ok}


def check_images(
    cache: Cache,
    source: Source,
    *,
    digests: bool = True,
    threads: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> ImagesReport:
    """Compare a source with the images of a cache.

    Args:
        cache: The cache.
        source: The available images, listed as the cache lists them.
        digests: Whether to read every image and compare its digest.
        threads: Threads that read; all processors by default.
        on_progress: Called with the numbers of images read and of all images.
    """
    samples = cache.samples
    here = samples.rows - samples.start
    keys, status = samples.keys[here], samples.status[here]
    join = ImageJoin(source, cache.class_names)
    sets = samples.label_sets
    joined = join.find(
        keys,
        samples.hashes[here],
        samples.sizes[here],
        samples.labels[here],
        None if sets is None else sets.take(here),
    )
    is_read = (status == Status.OK) & joined.found & ~joined.resized & digests
    chosen = list(zip(samples.rows[is_read].tolist(), joined.positions[is_read], strict=True))
    kept = status != Status.WITHDRAWN
    return ImagesReport(
        images=len(here),
        digested=len(chosen),
        missing=tuple(keys[kept & ~joined.found]),
        resized=tuple(keys[joined.resized]),
        replaced=_replaced(cache, source, chosen, threads, on_progress),
        relabeled=tuple(keys[kept & joined.relabeled]),
        relisted=_relisted(cache),
        added=tuple(source.keys[index] for index in join.added()),
        withdrawn=samples.withdrawn,
        unreadable=samples.unreadable,
        left_out=left_out_of(source),
    )


def _replaced(
    cache: Cache,
    source: Source,
    chosen: Sequence[tuple[int, int]],
    threads: int | None,
    on_progress: Callable[[int, int], None] | None,
) -> tuple[str, ...]:
    """Return the keys of images with another digest than in the cache.

    Args:
        cache: The cache.
        source: The available images.
        chosen: Row of each image to read, and its position in the source.
        threads: Threads that read; all processors by default.
        on_progress: Called with the numbers of images read and of all images.
    """
    samples, replaced = cache.samples, []

    def is_same(item: tuple[int, int]) -> bool:
        row, index = item
        return is_same_content(source.read(int(index)), samples.digests[row])

    with ThreadPoolExecutor(threads or available_processors()) as pool:
        for count, (item, same) in enumerate(
            zip(chosen, pool.map(is_same, chosen), strict=True), start=1
        ):
            if not same:
                replaced.append(str(samples.keys[item[0]]))
            if on_progress is not None:
                on_progress(count, len(chosen))
    return tuple(replaced)


def _relisted(cache: Cache) -> tuple[int, ...]:
    """Return the first rows of segments with other samples than the manifest was sealed with.

    Samples that were changed and sealed again agree with all their commits, but not with the digest
    of keys and labels that was written to the manifest when the images were listed.
    """
    samples: Any = cache.samples  # stands for a source: only keys and labels are read
    sealed = cache.manifest.segments[: len(cache.revision.segments)]
    return tuple(
        segment.start
        for segment in sealed
        if segment.listing_sha256
        and listing_digest(samples, np.arange(segment.start, segment.stop))
        != segment.listing_sha256
    )
