"""Assignment of the images of a source to the rows of a cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from logitcache.cache.format.images import image_placement
from logitcache.cache.format.ledger import is_intact
from logitcache.cache.format.manifest import Segment, read_manifest
from logitcache.cache.format.names import NO_VIEW, SAMPLES
from logitcache.cache.format.samples import check_label_width, sample_placement
from logitcache.data.decode import DECODING
from logitcache.data.identity import listing_digest, row_order
from logitcache.data.join import ImageJoin, NamedKeys
from logitcache.data.lookup import position_dtype
from logitcache.data.packing import PackingSource, packing_of
from logitcache.data.readers import open_source, open_source_for
from logitcache.errors import CacheDamaged, DataMismatch, first_of
from logitcache.label_sets import label_sets_of
from logitcache.precompute.plan.packing import check_packing, sealed_images, sealed_rows

if TYPE_CHECKING:
    from collections.abc import Mapping

    from logitcache.cache.format.ledger import Commit
    from logitcache.cache.format.samples import Samples
    from logitcache.cache.store.base import Location
    from logitcache.cache.write.writer import CacheWriter
    from logitcache.data.packing import ImagesConfig
    from logitcache.data.readers import ImageSet
    from logitcache.data.source import Source

__all__ = [
    "Positions",
    "match_or_extend",
    "match_rows",
    "no_positions",
    "open_images",
    "rows_of_cache",
    "segment_of",
    "with_images",
]

Positions = NDArray[np.signedinteger]
_UNKNOWN = -1


def open_images(
    data: ImageSet | None, location: Location, images: ImagesConfig | None = None
) -> Source:
    """List images by the rules and the class numbers of a cache.

    Args:
        data: Configuration of the image set, or its name; or an object from Python. If it is None,
            images are taken from the cache.
        location: The cache; if it does not exist, images are listed as for a new one.
        images: Images that are stored in a new cache; None for none.

    Returns:
        The images; packed ones if the cache contains or will contain them.

    Raises:
        DataMismatch: There are images of classes that the cache does not have.
        UsageError: The cache contains images with other settings, or ``data`` is missing.
    """
    if location.is_empty():
        return with_images(open_source(data), images)
    manifest = read_manifest(location)
    known, packing = manifest.data, check_packing(manifest, images, location)
    if data is None and packing is not None:
        return sealed_rows(location) if packing.are_views else sealed_images(location)
    source = open_source_for(data, known.class_names, "the cache", listing=known.listing)
    return with_images(source, packing, known.decoding)


def with_images(source: Source, images: ImagesConfig | None, table: int = DECODING) -> Source:
    """Return the images as a cache contains them; as they are if it contains none.

    Args:
        source: The images.
        images: What the cache contains of them.
        table: Version of the table that they are decoded by.
    """
    if images is None or images.are_views:
        return source
    return PackingSource(source, images, table)


def no_positions(rows: int, images: int) -> Positions:
    """Return an array of -1 for every row, of the smallest dtype for that many images."""
    return np.full(rows, _UNKNOWN, dtype=position_dtype(images))


def segment_of(source: Source, rows: Positions, start: int) -> Segment:
    """Return the segment with these images.

    Args:
        source: Image set.
        rows: Positions in the source, in the order of the rows.
        start: First row of the segment.
    """
    return Segment(start=start, rows=len(rows), listing_sha256=listing_digest(source, rows))


def match_or_extend(writer: CacheWriter, source: Source) -> Positions:
    """Find every row of a cache in a source; add a segment for images that are new.

    Returns:
        Position in the source of every row, int (capacity,); -1 for padding and for withdrawn
        images that no longer exist.

    Raises:
        DataMismatch: Images are missing or have another size; the message names them.
    """
    capacity = writer.manifest.capacity
    known, added = _match(writer, source)
    if not len(added):
        return known
    rows = row_order(source, added)
    writer.add_segment(segment_of(source, rows, start=capacity))
    indices = no_positions(writer.manifest.capacity, len(source.keys))
    indices[: len(known)] = known
    indices[capacity : capacity + len(rows)] = rows
    return indices


def match_rows(writer: CacheWriter, source: Source) -> Positions:
    """Find every row of a cache in a source, as :func:`match_or_extend` does, and add nothing."""
    return _match(writer, source)[0]


def _match(writer: CacheWriter, source: Source) -> tuple[Positions, Positions]:
    """Return the position of every row in a source, and the positions of images that are new."""
    manifest = writer.manifest
    _check_classes(writer, source)
    if writer.missing_units(SAMPLES, NO_VIEW, manifest.unit_rows):
        return _match_unfinished(writer, source), no_positions(0, 0)
    known = _Known(writer, source, manifest.capacity)
    known.add(0, manifest.capacity)
    known.refuse_other_images()
    return known.indices, known.join.added()


class _Known:
    """Rows of a cache, matched with the images of a source by key.

    Args:
        writer: Writer of the cache.
        source: Image set.
        capacity: Number of rows of the cache, including padding.

    Attributes:
        join: Join of keys with the source.
        indices: Position in the source of each row, int (capacity,); -1 for rows without an image.
        rows: Number of rows looked up so far.
    """

    def __init__(self, writer: CacheWriter, source: Source, capacity: int) -> None:
        self._writer, self._source = writer, source
        self._missing, self._resized = NamedKeys(), NamedKeys()
        self.join = ImageJoin(source)
        self.indices = no_positions(capacity, len(source.keys))
        self.rows = 0

    def add(self, start: int, stop: int) -> None:
        """Look up rows whose samples are intact, block by block."""
        for first in range(start, stop, self._writer.manifest.unit_rows):
            block = self._writer.read_samples(first, first + self._writer.manifest.unit_rows)
            here = block.rows - first
            sizes = self._sizes_of(block)[here]
            self.find(block.rows, block.keys[here], block.hashes[here], sizes)

    def _sizes_of(self, block: Samples) -> NDArray[np.int64]:
        """Return the bytes of the images that the source has to have, -1 where they are unknown."""
        images = self._writer.manifest.images
        if packing_of(self._source) is None or images is None:
            return block.sizes
        try:  # the samples describe packed images, the source has the original ones
            return self._writer.read_array(
                image_placement(images), "source_bytes", block.start, block.start + len(block.sizes)
            )
        except CacheDamaged:  # a repair packs them again, and compares all of their bytes
            return np.full_like(block.sizes, -1)

    def find(
        self,
        rows: NDArray[np.int64],
        keys: NDArray[np.object_],
        hashes: NDArray[np.uint64] | None = None,
        sizes: NDArray[np.int64] | None = None,
    ) -> None:
        """Look up rows by key; see :meth:`.ImageJoin.find`."""
        joined = self.join.find(keys, hashes, sizes)
        self.rows += len(rows)
        self.indices[rows] = joined.positions
        self._missing.add(keys[~joined.found], allowed=self._writer.withdrawn)
        self._resized.add(keys[joined.resized])

    def refuse_other_images(self) -> None:
        """Raise an error if images are missing, except withdrawn ones, or have another size."""
        if not self._missing.count and not self._resized.count:
            return
        raise DataMismatch(
            "these are not the images that the cache was created from",
            where=self._writer.location,
            expected=f"{self.rows} images with the recorded names and sizes",
            got=f"{self._source.description}: {self._missing:missing}; "
            f"{self._resized:of another size}",
            hint="pass the original images as --data, exclude the missing ones "
            "(logitcache exclude), or create a new cache",
        )


def rows_of_cache(
    writer: CacheWriter, source: Source, damaged: Mapping[int, Commit | None]
) -> Positions:
    """Find every row of a cache in a source, including rows whose samples are damaged.

    Keys that are intact are read from the cache. Rows whose keys are lost get the remaining images
    of the source, in row order; the writer compares what it then writes with the commits.

    Args:
        writer: Writer of the cache.
        source: Image set.
        damaged: Commits of the blocks whose samples are damaged, by block; None if the commit is
            lost, too.

    Returns:
        Position in the source of every row, int (capacity,), as for :func:`match_or_extend`.

    Raises:
        DataMismatch: The images cannot be those of the cache.
    """
    _check_classes(writer, source)
    manifest, rows = writer.manifest, writer.manifest.unit_rows
    _refuse_fewer(writer, source)
    known = _Known(writer, source, manifest.capacity)
    missing = writer.missing_units(SAMPLES, NO_VIEW, rows)
    lost = []
    for block in sorted(writer.needed_units(rows)):
        start, stop = block * rows, (block + 1) * rows
        if block not in damaged and block not in missing:
            known.add(start, stop)
        elif _has_keys(writer, damaged.get(block)):
            keys = writer.read_array(sample_placement(manifest), "key", start, stop)
            here = np.flatnonzero(keys != "")
            known.find(start + here, keys[here])
        else:
            lost.append(block)
    if any(block in damaged for block in lost):
        _fill_lost(writer, source, known, lost)
    known.refuse_other_images()
    return known.indices


def _has_keys(writer: CacheWriter, recorded: Commit | None) -> bool:
    """Return whether the keys of a damaged block can still be read."""
    if recorded is None:
        return False
    stored = recorded.arrays[f"{SAMPLES}/key"]
    return is_intact(writer.location, stored)


def _fill_lost(writer: CacheWriter, source: Source, known: _Known, lost: list[int]) -> None:
    """Assign the remaining images to rows without keys: a segment is sorted by (hash, key)."""
    rows = writer.manifest.unit_rows
    empty = [
        np.arange(max(segment.start, block * rows), min(segment.stop, (block + 1) * rows))
        for segment in writer.manifest.segments
        for block in lost
    ]
    left = known.join.added()
    segments = {number for number, part in enumerate(empty) if len(part)}
    wanted = np.concatenate(empty)
    if len(left) != len(wanted) or len({number // len(lost) for number in segments}) > 1:
        raise DataMismatch(
            "the images of the damaged rows cannot be identified",
            where=writer.location,
            expected=f"{len(wanted)} images that belong to no intact row",
            got=f"{len(left)} in {source.description}",
            hint="pass exactly the images of the cache as --data, without later additions",
        )
    known.indices[wanted] = row_order(source, left)
    known.rows += len(wanted)


def _match_unfinished(writer: CacheWriter, source: Source) -> Positions:
    """Compute the row order again if samples are missing: the listing must be unchanged."""
    _refuse_fewer(writer, source)
    manifest = writer.manifest
    segment = manifest.segments[-1]
    known = _Known(writer, source, manifest.capacity)
    known.add(0, segment.start)
    known.refuse_other_images()
    rows = row_order(source, known.join.added())
    if listing_digest(source, rows) != segment.listing_sha256:
        raise DataMismatch(
            "images were added, removed or relabeled since this cache was started",
            where=writer.location,
            expected=f"the same {segment.rows} images and labels",
            got=f"{len(rows)} images in {source.description}",
            hint="restore the images and finish the run; images can be added afterwards",
        )
    known.indices[segment.start : segment.stop] = rows
    return known.indices


def _check_classes(writer: CacheWriter, source: Source) -> None:
    names, width = writer.manifest.data.class_names, writer.manifest.data.label_width
    sets = label_sets_of(source)
    if (sets is None) != (width is None):
        kinds = {True: "at most one class for each image", False: "sets of classes"}
        raise DataMismatch(
            "the labels of these images are of another kind than those of the cache",
            where=writer.location,
            expected=kinds[width is None],
            got=f"{kinds[sets is None]}: {source.description}",
            hint="pass the images and label settings that the cache was created with",
        )
    check_label_width(sets, width, source.description)
    if tuple(source.class_names) != names:
        raise DataMismatch(
            "the cache was created from data with other classes",
            where=writer.location,
            expected=first_of(names, 10) or "no labels",
            got=first_of(source.class_names, 10) or "no labels",
            hint="pass the images that the cache was created from as --data",
        )


def _refuse_fewer(writer: CacheWriter, source: Source) -> None:
    """Raise an error if the manifest has more rows than the data has images, before allocating."""
    rows = writer.manifest.rows - len(writer.withdrawn)
    if rows > len(source.keys):
        raise DataMismatch(
            "the cache has more rows than the data has images",
            where=writer.location,
            expected=f"at least {rows} images",
            got=f"{len(source.keys)} in {source.description}",
            hint="pass the original images as --data",
        )
