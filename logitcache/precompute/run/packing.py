"""Packing of the images of a block into the cache, before any teacher is run on them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from logitcache.cache.format.images import image_placement, joined_images
from logitcache.cache.format.names import IMAGES, NO_VIEW, Status
from logitcache.cache.format.placement import units_of
from logitcache.data.identity import content_digest, stored_bytes
from logitcache.errors import UnreadableImage
from logitcache.precompute.plan.packing import stored_bytes_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from logitcache.cache.write.writer import CacheWriter
    from logitcache.data.packing import PackingSource
    from logitcache.precompute.plan.worklist import Block

__all__ = ["ImagePacker"]

_AT_ONCE = 64
_NO_DIGEST = bytes(16)


class _Packed(NamedTuple):
    """A packed image, empty if its original is unreadable; size and digest of the original."""

    image: bytes = b""
    source_bytes: int = 0
    source_digest: bytes = _NO_DIGEST


class ImagePacker:
    """Packer of images into the units of a cache.

    Args:
        writer: Writer of the cache.
        originals: The images.
        indices: Position in the source of every row of the cache; -1 for rows without an image.
        threads: Number of threads that decode and encode.
        skip_bad_images: Whether unreadable images are marked instead of being an error.
        after_images: Called with 0 after every few images; may raise to stop.
    """

    def __init__(
        self,
        writer: CacheWriter,
        originals: PackingSource,
        indices: NDArray[np.signedinteger],
        *,
        threads: int,
        skip_bad_images: bool = True,
        after_images: Callable[[int], None] = lambda _: None,
    ) -> None:
        assert writer.manifest.images is not None
        self._writer, self._originals, self._indices = writer, originals, indices
        self._threads, self._skip = threads, skip_bad_images
        self._after_images = after_images
        self._placement = image_placement(writer.manifest.images)

    def pack_block(self, block: Block) -> None:
        """Pack and commit the missing images of a block, and describe all of them in the block.

        Digests and sizes of the packed images go into the block; unreadable images are marked.

        Raises:
            UnreadableImage: An image cannot be decoded, and bad images are errors.
        """
        rows = self._placement.unit_rows
        start, stop = block.start, block.start + len(block.indices)
        missing = self._writer.missing_units(IMAGES, NO_VIEW, rows)
        for unit in units_of(start, stop, rows):
            if unit in missing:
                self.pack_unit(unit)
        images = stored_bytes_of(self._writer)
        for offset in np.flatnonzero(block.status == Status.OK).tolist():
            image = images.read(start + offset)
            if image:
                block.digests[offset] = np.frombuffer(content_digest(image), dtype=np.uint8)
                block.sizes[offset] = len(image)
            else:
                block.status[offset] = Status.UNREADABLE

    def pack_unit(self, unit: int) -> None:
        """Pack and commit the images of a unit."""
        start = unit * self._placement.unit_rows
        indices = self._indices[start : start + self._placement.unit_rows].tolist()
        packed: list[_Packed] = []
        with ThreadPoolExecutor(self._threads, thread_name_prefix="pack") as pool:
            for first in range(0, len(indices), _AT_ONCE):
                packed += pool.map(self._pack, indices[first : first + _AT_ONCE])
                self._after_images(0)
        arrays = joined_images([one.image for one in packed], f"{IMAGES}, unit {unit}")
        digests = b"".join(one.source_digest for one in packed)
        arrays["source_bytes"] = np.array([one.source_bytes for one in packed], dtype=np.int64)
        arrays["source_digest"] = np.frombuffer(digests, dtype=np.uint8).reshape(-1, 16)
        self._writer.write_images(unit, arrays)

    def _pack(self, index: int) -> _Packed:
        if index < 0:
            return _Packed()
        original = self._originals.originals.read(index)
        described = len(stored_bytes(original)), content_digest(original)
        try:
            return _Packed(self._originals.pack(original), *described)
        except UnreadableImage as error:
            if not self._skip:
                raise error.at(
                    self._originals.keys[index],
                    "fix or remove the file, or pass --on-bad-image skip",
                ) from error
            return _Packed(b"", *described)
