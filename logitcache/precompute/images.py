"""Are these the images the cache was made from? Every key, every size, every byte."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from logitcache.data.identity import compare, content_digest
from logitcache.platforms import available_processors

if TYPE_CHECKING:
    from collections.abc import Callable

    from logitcache.cache.reader import Cache
    from logitcache.data.source import Source

__all__ = ["ImagesReport", "check_images"]


@dataclass(frozen=True)
class ImagesReport:
    """How a source differs from the images of a cache; order and root folder do not matter.

    Attributes:
        images: Images of the cache.
        digested: How many of them were read and digested.
        missing: Keys that the source lacks and that were not withdrawn.
        resized: Keys whose image has another number of bytes.
        replaced: Keys whose image has as many bytes, but others.
        added: Keys that the cache does not have; a precompute adds them as a segment.
        withdrawn: Images that were withdrawn.
        unreadable: Images that could not be decoded when the cache was made.
    """

    images: int
    digested: int
    missing: tuple[str, ...]
    resized: tuple[str, ...]
    replaced: tuple[str, ...]
    added: tuple[str, ...]
    withdrawn: int
    unreadable: int

    @property
    def ok(self) -> bool:
        """Whether every image of the cache is there, unchanged."""
        return not (self.missing or self.resized or self.replaced)

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {**asdict(self), "ok": self.ok}


def check_images(
    cache: Cache,
    source: Source,
    *,
    digests: bool = True,
    on_progress: Callable[[int, int], None] | None = None,
) -> ImagesReport:
    """Compare a source with the images of a cache.

    Args:
        cache: The cache.
        source: The images at hand.
        digests: Whether to read every image and compare its digest.
        on_progress: Called with the number of images read, and of all.
    """
    samples = cache.samples
    here = samples.rows - samples.start
    keys, sizes = samples.keys[here], samples.sizes[here]
    found, difference = compare(source, keys, sizes)
    gone = cache.withdrawn
    resized = set(difference.changed)
    readable = set(samples.readable.tolist())
    chosen = [
        (row, int(index))
        for row, index, key in zip(samples.rows.tolist(), found, keys, strict=True)
        if digests and index >= 0 and row in readable and key not in resized
    ]

    def is_same(item: tuple[int, int]) -> bool:
        row, index = item
        return bool(content_digest(source.read(index)) == samples.digests[row].tobytes())

    replaced = []
    with ThreadPoolExecutor(available_processors()) as pool:
        for count, (item, same) in enumerate(
            zip(chosen, pool.map(is_same, chosen, chunksize=16), strict=True), start=1
        ):
            if not same:
                replaced.append(str(samples.keys[item[0]]))
            if on_progress is not None:
                on_progress(count, len(chosen))
    return ImagesReport(
        images=len(here),
        digested=len(chosen),
        missing=tuple(key for key in difference.missing if key not in gone),
        resized=tuple(difference.changed),
        replaced=tuple(replaced),
        added=tuple(source.keys[index] for index in difference.added),
        withdrawn=samples.withdrawn,
        unreadable=samples.unreadable,
    )
