"""Which image of a source belongs to which row, and whether it is the very same image."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from logitcache.data.identity import compare, content_digest, row_order
from logitcache.errors import DataMismatch, UnreadableImage

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from logitcache.cache.reader import Cache
    from logitcache.data.source import Source

__all__ = ["CheckedReader", "ImageRows", "match_rows", "number_rows"]

_REASONS = ("left_out", "missing", "unreadable", "withdrawn")


@dataclass
class ImageRows:
    """The images that can be shown, in the order of rows.

    Attributes:
        rows: Row of each image, int64 (N,), ascending.
        indices: Position of each in the source, int64 (N,).
        hashes: Key hash of each, uint64 (N,).
        labels: Class of each, int64 (N,), -1 without one.
        digests: Content digest of each, uint8 (N, 16), to be compared when it is first read; None
            where nothing is known yet.
        left_out: Images of the source that have no row.
        missing: Images of the cache that the source lacks; only where a subset is allowed.
        unreadable: Images that could not be decoded when the cache was made.
        withdrawn: Images that were withdrawn.
    """

    rows: NDArray[np.int64]
    indices: NDArray[np.int64]
    hashes: NDArray[np.uint64]
    labels: NDArray[np.int64]
    digests: NDArray[np.uint8] | None = None
    left_out: int = 0
    missing: int = 0
    unreadable: int = 0
    withdrawn: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    def positions(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return where rows lie in the arrays."""
        return np.searchsorted(self.rows, rows)

    def counts(self) -> dict[str, int]:
        """Return how many images are not shown, by the reason."""
        return {name: getattr(self, name) for name in _REASONS}

    def keep(self, chosen: NDArray[np.bool_]) -> ImageRows:
        """Return only the chosen images."""
        return replace(
            self,
            rows=self.rows[chosen],
            indices=self.indices[chosen],
            hashes=self.hashes[chosen],
            labels=self.labels[chosen],
            digests=None if self.digests is None else self.digests[chosen],
        )


def number_rows(source: Source) -> ImageRows:
    """Number the images of a source that has no cache."""
    order = row_order(source)
    return ImageRows(
        rows=np.arange(len(order), dtype=np.int64),
        indices=order.indices,
        hashes=order.hashes,
        labels=source.labels[order.indices].astype(np.int64),
    )


def match_rows(cache: Cache, source: Source, *, subset: bool = False) -> ImageRows:
    """Find the images of a cache in a source, by key and size.

    Images that could not be decoded when the cache was made are left out.

    Args:
        cache: The cache.
        source: The images at hand, in any order, below any root.
        subset: Whether images of the cache may be missing.

    Raises:
        DataMismatch: Images are missing or of another size.
    """
    samples = cache.samples
    rows = samples.readable
    found, difference = compare(source, samples.keys[rows], samples.sizes[rows])
    missing = difference.missing
    if difference.changed or (missing and not subset) or len(missing) == len(rows):
        raise DataMismatch(
            "these are not the images the cache was made from",
            where=cache.url,
            expected=f"{len(rows)} images of {cache.manifest.data.description}, by name and size",
            got=f"{source.description}: {difference.summary()}",
            hint="point --data at the folder the cache was made from"
            + ("" if subset else ", or allow a subset (subset: true)"),
        )
    here = found >= 0
    rows, found = rows[here], found[here]
    unusable = set(samples.keys[np.setdiff1d(samples.rows, samples.readable)])
    return ImageRows(
        rows=rows,
        indices=found,
        hashes=samples.hashes[rows],
        labels=source.labels[found].astype(np.int64),
        digests=samples.digests[rows],
        left_out=sum(source.keys[index] not in unusable for index in difference.added),
        missing=len(missing),
        unreadable=samples.unreadable,
        withdrawn=samples.withdrawn,
    )


class CheckedReader:
    """Reads images by position in :class:`ImageRows`, comparing each digest once.

    Args:
        source: The images.
        rows: Which of them, and what is known of them.
    """

    def __init__(self, source: Source, rows: ImageRows) -> None:
        self._source = source
        self._rows = rows
        self._checked = np.zeros(len(rows), dtype=np.bool_)

    def named(self, error: UnreadableImage) -> UnreadableImage:
        """Return an error that names the file instead of its position."""
        position: Any = error.where
        return UnreadableImage(
            error.what,
            where=self._source.keys[int(self._rows.indices[position])],
            got=error.got,
            hint="mend the file, or leave its folder out",
        )

    def __call__(self, position: int) -> bytes | NDArray[np.uint8]:
        """Return the stored image.

        Raises:
            DataMismatch: It is not the image the cache was made from.
        """
        index = int(self._rows.indices[position])
        image = self._source.read(index)
        if self._rows.digests is None or self._checked[position]:
            return image
        expected = self._rows.digests[position].tobytes()
        if content_digest(image) != expected:
            raise DataMismatch(
                "this image is not the one the teachers saw",
                where=self._source.keys[index],
                expected=f"digest {expected.hex()}",
                got=f"digest {content_digest(image).hex()}",
                hint="restore the file",
            )
        self._checked[position] = True
        return image
