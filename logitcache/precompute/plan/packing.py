"""Images in a cache as stage 1 sees them: declaration, and reading of what is already stored."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from logitcache.cache.format.images import image_placement
from logitcache.cache.format.ledger import read_commits
from logitcache.cache.format.names import group_unit_rows
from logitcache.cache.format.records import ImagesRecord, SquaresRecord, StoredRecords
from logitcache.cache.format.squares import square_placement
from logitcache.cache.read.cached_images import CachedImages, CachedRows
from logitcache.cache.read.image_bytes import ImageBytes
from logitcache.cache.read.reader import Cache, open_cache
from logitcache.cache.read.stored_squares import StoredSquares
from logitcache.data.packing import ImagesConfig, packing_of
from logitcache.data.source import left_out_of, notes_of
from logitcache.errors import CacheDamaged, CacheUnsealed, UnreadableImage, UsageError
from logitcache.label_sets import label_sets_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from logitcache.cache.format.ledger import Commit
    from logitcache.cache.format.manifest import Manifest
    from logitcache.cache.format.placement import Placement
    from logitcache.cache.store.base import Location
    from logitcache.cache.write.writer import CacheWriter
    from logitcache.data.packing import PackingSource
    from logitcache.data.source import Source

__all__ = [
    "StoredImages",
    "check_packing",
    "images_as_stored",
    "sealed_images",
    "sealed_rows",
    "stored_bytes_of",
    "stored_records",
    "stored_squares_of",
    "with_side",
]


def stored_records(config: ImagesConfig | None, unit_rows: int) -> StoredRecords:
    """Return the declaration for a new cache with blocks of that many rows."""
    if config is None:
        return {}
    side = config.short_side
    # a square of these pixels is a byte each, twice what a photograph takes
    rows = group_unit_rows(unit_rows, side**2)
    if config.are_views:
        return {"squares": SquaresRecord(side=side, quality=config.quality, unit_rows=rows)}
    record = ImagesRecord(kind="packed", side=side, quality=config.quality, unit_rows=rows)
    return {"images": record}


def check_packing(
    manifest: Manifest, wanted: ImagesConfig | None, location: Location
) -> ImagesConfig | None:
    """Return what an existing cache contains of its images; None if it contains nothing.

    Raises:
        UsageError: Other settings are requested.
    """
    images, squares = manifest.images, manifest.squares
    known = None
    if images is not None:
        known = ImagesConfig(kind="packed", side=images.side, quality=images.quality)
    if squares is not None:
        known = ImagesConfig(kind="views", side=squares.side, quality=squares.quality)
    if wanted is not None and not wanted.same_as(known):
        raise UsageError(
            "the images of an existing cache cannot be changed: its teachers were run on them",
            where=location,
            expected="no images in the cache" if known is None else f"images {known}",
            got=f"images {wanted}",
            hint="omit --images, or create a new cache",
        )
    return known


def sealed_images(location: Location) -> CachedImages:
    """Return the images in a cache, to add teachers or views without the original ones.

    Raises:
        UsageError: The cache is not sealed: images may be missing from it.
    """
    return CachedImages(_sealed(location))


def sealed_rows(location: Location) -> CachedRows:
    """Return the images of a cache without their pixels, to compute from stored views.

    Raises:
        UsageError: The cache is not sealed: views may be missing from it.
    """
    return CachedRows(_sealed(location))


def _sealed(location: Location) -> Cache:
    try:
        return open_cache(location)
    except CacheUnsealed:
        raise UsageError(
            "option 'data' is missing, and the cache does not contain all of its images yet",
            where=location,
            hint="give the original images with --data until the first run is finished",
        ) from None


def stored_bytes_of(writer: CacheWriter) -> ImageBytes:
    """Return the committed images of a cache, sealed or not."""
    assert writer.manifest.images is not None
    return _committed(writer.location, image_placement(writer.manifest.images))


def stored_squares_of(writer: CacheWriter) -> StoredSquares | None:
    """Return the committed squares of a cache, sealed or not; None if it contains none."""
    manifest, location = writer.manifest, writer.location
    if manifest.squares is None:
        return None

    def open_view(view_id: str) -> ImageBytes:
        return _committed(location, square_placement(view_id, manifest), f"{view_id}/")

    return StoredSquares(manifest.squares.side, open_view, str(location))


def _committed(location: Location, placement: Placement, folder: str = "") -> ImageBytes:
    known: dict[int, Commit] = {}

    def commit_of(unit: int) -> Commit:
        if unit not in known:
            found = read_commits(location, placement.group, placement.view, [unit])
            placement.check(found, str(location))
            if unit not in found:
                where = f"{location}, {placement.ledger}"
                raise CacheDamaged("a unit is not committed", where=where, got=f"unit {unit}")
            known.update(found)
        return known[unit]

    return ImageBytes(location, placement, commit_of, folder=folder)


def with_side(
    images: ImagesConfig | None, manifest: Manifest | None, sizes: Sequence[int]
) -> ImagesConfig | None:
    """Return the settings of images in a cache, with the side of its views.

    Args:
        images: Requested settings.
        manifest: What is declared; None for a new cache.
        sizes: Input sizes of the teachers, in pixels.

    Raises:
        UsageError: A teacher has another input size than the stored views.
    """
    squares = None if manifest is None else manifest.squares
    if squares is None and (images is None or not images.are_views or manifest is not None):
        return images
    side = squares.side if squares is not None else (images and images.side) or min(sizes)
    other = [size for size in sizes if size != side]
    if other:
        raise UsageError(
            "the views in a cache have one size, and a teacher has another one",
            where="images",
            expected=f"teachers of {side} pixels",
            got=f"a teacher of {other[0]} pixels",
            hint="use teachers of one input size, a cache for each size, or --images packed",
        )
    return images and images.model_copy(update={"side": side})


def images_as_stored(
    source: Source, writer: CacheWriter, indices: NDArray[np.signedinteger]
) -> Source:
    """Return the source that teachers see: what the cache stores of it, if it contains images."""
    originals = packing_of(source)
    return source if originals is None else StoredImages(originals, writer, indices)


class StoredImages:
    """A source whose images are read from the cache, once they are committed there.

    Args:
        originals: The images that they are packed from; keys and labels are theirs.
        writer: Writer of the cache.
        indices: Position in the source of every row of the cache; -1 for rows without an image.
    """

    def __init__(
        self, originals: PackingSource, writer: CacheWriter, indices: NDArray[np.signedinteger]
    ) -> None:
        self._originals, self._images = originals, stored_bytes_of(writer)
        rows = np.flatnonzero(indices >= 0)
        self._rows = np.full(len(originals.keys), -1, dtype=np.int64)
        self._rows[indices[rows]] = rows
        self.description = originals.description
        self.class_names = originals.class_names
        self.label_sets = label_sets_of(originals)
        self.left_out = left_out_of(originals)
        self.notes = notes_of(originals)

    @property
    def keys(self) -> Sequence[str]:
        """Key of every image."""
        return self._originals.keys

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Bytes of every image; -1, since they are not known before it is read."""
        return np.full(len(self._rows), -1, dtype=np.int64)

    @property
    def labels(self) -> NDArray[np.int32]:
        """Class of every image, int32 (N,)."""
        return self._originals.labels

    def read(self, index: int) -> bytes:
        """Return an image as it is stored.

        Raises:
            UnreadableImage: The original could not be decoded.
            CacheDamaged: It is not committed.
        """
        image = self._images.read(int(self._rows[index]))
        if not image:
            raise UnreadableImage("the image could not be decoded", where=self.keys[index])
        return image
