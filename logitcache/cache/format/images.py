"""Images in a cache: the encoded bytes of all images of a unit, and where each one ends.

The bytes of a unit are one string, stored in pages of 64 KiB, each followed by its checksum. Pages
are in order and without gaps, so that the place of an image in its shard follows from where the
image begins and ends, and one request reads it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from logitcache.cache.format.arrays import create_array, create_group
from logitcache.cache.format.ledger import sealed_bytes
from logitcache.cache.format.names import IMAGES, MAX_CONTENT_BYTES, NO_VIEW
from logitcache.cache.format.placement import Placement
from logitcache.encoding.arrays import ArraySpec
from logitcache.errors import CacheDamaged, DataError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from logitcache.cache.format.manifest import ImagesRecord, Manifest
    from logitcache.cache.store.base import Location
    from logitcache.cache.store.zarr_store import RecordingStore
    from logitcache.encoding.arrays import Encoded

__all__ = [
    "IMAGE_ARRAYS",
    "PAGE",
    "create_images",
    "image_bytes",
    "image_fault",
    "image_placement",
    "image_range",
    "joined_images",
    "shard_range",
    "split_images",
    "without_checksums",
]

PAGE = 1 << 16
_CRC_BYTES = 4
IMAGE_ARRAYS = {
    "content": ArraySpec((), "uint8", 0, "raw", page=PAGE),
    "end": ArraySpec((), "int64", 0),
    "source_bytes": ArraySpec((), "int64", 0),
    "source_digest": ArraySpec((16,), "uint8", 0, "raw"),
}
"""Bytes of all images of a unit; offset of the end of each image in them; size and digest of the
image that it was encoded from."""


def image_placement(images: ImagesRecord) -> Placement:
    """Return the placement of the images of a cache."""
    return Placement(IMAGES, NO_VIEW, images.unit_rows, None, IMAGE_ARRAYS)


def create_images(location: Location, store: RecordingStore, manifest: Manifest) -> None:
    """Create the arrays of the images that do not exist yet, if the cache has images."""
    if manifest.images is None:
        return
    placement = image_placement(manifest.images)
    if location.size(f"{IMAGES}/zarr.json") is None:
        create_group(store, IMAGES, {"unit_rows": placement.unit_rows})
    for name, spec in placement.specs.items():
        path = placement.path(name)
        if location.size(f"{path}/zarr.json") is None:
            create_array(store, path, spec, (manifest.capacity,), placement.unit_rows)


def image_bytes(location: Location) -> int:
    """Return the bytes of the images in a cache; where keys cannot be listed, of sealed shards."""
    if not location.lists:
        return sealed_bytes(location, IMAGES, [NO_VIEW])
    return location.bytes_below(IMAGES)


def joined_images(images: Sequence[bytes], where: object) -> Encoded:
    """Return the arrays ``content`` and ``end`` of the images of a unit.

    Args:
        images: Encoded bytes of each row; empty for rows without an image.
        where: The unit, for messages.

    Raises:
        DataError: They are larger than a unit may be.
    """
    end = np.cumsum([len(image) for image in images], dtype=np.int64)
    size = int(end[-1])
    if size > MAX_CONTENT_BYTES:
        raise DataError(
            "the encoded images of a unit are too large",
            where=where,
            expected=f"at most {MAX_CONTENT_BYTES} bytes for {len(images)} images",
            got=f"{size} bytes",
            hint="create the cache with smaller images (--images packed:SIDE) or fewer rows per "
            "unit (--unit-rows)",
        )
    # at least one page: a unit without images is an object, too
    content = np.zeros(max(1, -(-size // PAGE)) * PAGE, dtype=np.uint8)
    content[:size] = np.frombuffer(b"".join(images), dtype=np.uint8)
    return {"content": content, "end": end}


def split_images(content: NDArray[np.uint8], end_U: NDArray[Any]) -> NDArray[np.object_]:
    """Return the bytes of each image of a unit: what :func:`joined_images` has joined.

    Args:
        content: Bytes of the unit; longer where its last page is filled up.
        end_U: Ends of the images.

    Raises:
        CacheDamaged: The images end beyond the bytes, or are impossible.
    """
    fault = image_fault({"end": end_U})
    if fault is None and end_U[-1] > len(content):
        fault = f"an image ends at byte {end_U[-1]} of {len(content)}"
    if fault is not None:
        raise CacheDamaged("the images of a unit are impossible", got=fault)
    images = np.empty(len(end_U), dtype=object)
    for offset in range(len(end_U)):
        begin, end = image_range(end_U, offset)
        images[offset] = content[begin:end].tobytes()
    return images


def image_fault(arrays: Mapping[str, NDArray[Any]]) -> str | None:
    """Return which ends or sizes of images are impossible; None if none are."""
    end, source_bytes = arrays.get("end"), arrays.get("source_bytes")
    if end is not None and not 0 <= end[0] <= end[-1] <= MAX_CONTENT_BYTES:
        return f"images that end before they begin, or beyond {MAX_CONTENT_BYTES} bytes"
    # compared, not subtracted: differences of untrusted numbers may overflow
    if end is not None and (end[1:] < end[:-1]).any():
        return "images that end before they begin"
    if source_bytes is not None and (source_bytes < 0).any():
        return "original images of a negative size"
    return None


def image_range(end_U: NDArray[np.int64], offset: int) -> tuple[int, int]:
    """Return where an image begins and ends in the bytes of its unit.

    Args:
        end_U: Ends of all images of the unit.
        offset: Offset of the row in the unit.
    """
    return int(end_U[offset - 1]) if offset else 0, int(end_U[offset])


def shard_range(begin: int, end: int) -> tuple[int, int]:
    """Return the part of a shard with some bytes of its unit, checksums between them included."""
    return begin + _CRC_BYTES * (begin // PAGE), end + _CRC_BYTES * ((end - 1) // PAGE)


def without_checksums(part: bytes, begin: int, end: int) -> bytes:
    """Return bytes [begin, end) of a unit from the part of a shard that :func:`shard_range` names.

    The checksums between pages are left out; they cannot be compared without the whole page.
    """
    if begin // PAGE == (end - 1) // PAGE:
        return part
    start = shard_range(begin, end)[0]
    pieces = []
    for page in range(begin // PAGE, (end - 1) // PAGE + 1):
        first, last = max(begin, page * PAGE), min(end, (page + 1) * PAGE)
        shift = _CRC_BYTES * page - start
        pieces.append(part[first + shift : last + shift])
    return b"".join(pieces)
