"""Estimate of the images in a cache: their bytes, and the time to decode and render them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from logitcache.cache.format.images import PAGE
from logitcache.cache.format.names import MAX_CONTENT_BYTES, group_unit_rows
from logitcache.data.decode import DECODING
from logitcache.data.identity import stored_bytes
from logitcache.data.lookup import key_hash
from logitcache.errors import UnreadableImage
from logitcache.views.render import BatchRequest, ViewRenderer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from logitcache.data.packing import PackingSource
    from logitcache.views.spec import View

    Image = bytes | NDArray[np.uint8]

__all__ = ["ImagesEstimate", "estimate_images"]

_SAMPLE = 64
_ROW_OVERHEAD = 8 + 8 + 16  # end, size and digest of the original
_ROUNDS = 3


@dataclass(frozen=True)
class ImagesEstimate:
    """Estimate for the images in a cache.

    Attributes:
        settings: Kind, side and quality.
        image_bytes: Mean bytes of an image in the cache.
        original_bytes: Mean bytes of an original image.
        bytes: Bytes of all images in the cache.
        pack: Seconds per image to decode the original, resize and encode it.
        show_original: Seconds per image to decode the original and render the first view of it.
        show: The same for the image in the cache.
    """

    settings: str
    image_bytes: float
    original_bytes: float
    bytes: int
    pack: float
    show_original: float
    show: float


def estimate_images(
    source: PackingSource, view: View, size: int, unit_rows: int
) -> ImagesEstimate | None:
    """Pack a sample of images, and render a view of the originals and of the packed images.

    Args:
        source: The images.
        view: The view.
        size: Side of the rendered squares in pixels.
        unit_rows: Rows of a block of the cache, U.

    Returns:
        The estimate, on one processor; None if no image of the sample can be decoded.
    """
    originals: list[Image] = []
    packed: list[Image] = []
    hashes, seconds = [], 0.0
    for index in range(0, len(source.keys), max(1, len(source.keys) // _SAMPLE)):
        original = source.originals.read(index)
        started = time.perf_counter()
        try:
            image = source.pack(original)
        except UnreadableImage:
            continue
        seconds += time.perf_counter() - started
        originals.append(original)
        packed.append(image)
        hashes.append(key_hash(source.keys[index]))
    if not packed:
        return None
    mean = float(np.mean([len(stored_bytes(image)) for image in packed]))
    rows = group_unit_rows(unit_rows, source.packing.side**2)
    per_unit = PAGE // 2 + 16 * MAX_CONTENT_BYTES // PAGE
    units = -(-len(source.keys) // rows)
    drawn = np.array(hashes, dtype=np.uint64)
    return ImagesEstimate(
        settings=str(source.packing),
        image_bytes=mean,
        original_bytes=float(np.mean([len(stored_bytes(image)) for image in originals])),
        bytes=round(len(source.keys) * (mean + _ROW_OVERHEAD) + units * per_unit),
        pack=seconds / len(packed),
        show_original=_shown(originals, drawn, view, size),
        show=_shown(packed, drawn, view, size),
    )


def _shown(images: Sequence[Image], hashes: NDArray[np.uint64], view: View, size: int) -> float:
    """Return the seconds per image to decode images in memory and render them, in one thread."""
    request = BatchRequest(view.unmixed, np.arange(len(images)), hashes)
    rounds = []
    with ViewRenderer(images.__getitem__, [size], threads=1, table=DECODING) as renderer:
        for _ in range(_ROUNDS):
            started = time.perf_counter()
            for _batch in renderer.batches([request]):
                pass
            rounds.append(time.perf_counter() - started)
    return min(rounds) / len(images)
