"""Estimate of images or views in a cache: their bytes, and the time to decode and render them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from logitcache.cache.format.images import PAGE
from logitcache.cache.format.names import MAX_CONTENT_BYTES, group_unit_rows
from logitcache.data.decode import DECODING
from logitcache.data.identity import stored_bytes
from logitcache.data.lookup import key_hash
from logitcache.data.packing import encode_jpeg, packing_of
from logitcache.errors import UnreadableImage
from logitcache.precompute.plan.packing import with_side
from logitcache.views.render import (
    BatchRequest,
    Decoder,
    Drawn,
    ViewRenderer,
    empty_batch,
    fill,
)
from logitcache.views.stored import finishing, stored_part

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from logitcache.data.packing import ImagesConfig, PackingSource
    from logitcache.data.source import Source
    from logitcache.views.spec import View

    Image = bytes | NDArray[np.uint8]

__all__ = ["ImagesEstimate", "estimate_images"]

_SAMPLE = 64
_ROW_OVERHEAD = 8 + 8 + 16  # end, size and digest of the original
_ROUNDS = 3


@dataclass(frozen=True)
class ImagesEstimate:
    """Estimate for the images, or their views, in a cache.

    Attributes:
        settings: Kind, side and quality.
        image_bytes: Mean bytes of an image, or of a square, in the cache.
        original_bytes: Mean bytes of an original image.
        bytes: Bytes of all images in the cache, or of all squares of a view.
        by_view: Whether each view has bytes of its own.
        pack: Seconds per image to decode the original, resize or render it, and encode it.
        show_original: Seconds per image to decode the original and render a view of it.
        show: The same for what is in the cache.
    """

    settings: str
    image_bytes: float
    original_bytes: float
    bytes: int
    by_view: bool
    pack: float
    show_original: float
    show: float

    def bytes_of(self, views: int) -> int:
        """Return the bytes in a cache with that many views."""
        return self.bytes * (views if self.by_view else 1)


def estimate_images(
    source: Source, images: ImagesConfig | None, view: View, sizes: Sequence[int], unit_rows: int
) -> ImagesEstimate | None:
    """Encode a sample of images, and render a view of the originals and of what is encoded.

    Args:
        source: The images.
        images: What is stored of them; None for nothing.
        view: The view.
        sizes: Input sizes of the teachers in pixels; the smallest is rendered.
        unit_rows: Rows of a block of the cache, U.

    Returns:
        The estimate, on one processor; None if nothing is stored, or if no image of the sample can
        be decoded.
    """
    images = with_side(images, None, sizes)
    if images is None:
        return None
    packs, size = packing_of(source), min(sizes)
    whole = source if packs is None else packs.originals
    encode = partial(_encoded_square, view, images) if packs is None else _packed(packs)
    originals: list[Image] = []
    encoded: list[Image] = []
    hashes, seconds = [], 0.0
    for index in range(0, len(source.keys), max(1, len(source.keys) // _SAMPLE)):
        original, key = whole.read(index), key_hash(source.keys[index])
        started = time.perf_counter()
        try:
            image = encode(original, key)
        except UnreadableImage:
            continue
        seconds += time.perf_counter() - started
        originals.append(original)
        encoded.append(image)
        hashes.append(key)
    if not encoded:
        return None
    mean = float(np.mean([len(stored_bytes(image)) for image in encoded]))
    rows = group_unit_rows(unit_rows, images.short_side**2)
    per_unit = PAGE // 2 + 16 * MAX_CONTENT_BYTES // PAGE
    units = -(-len(source.keys) // rows)
    drawn = np.array(hashes, dtype=np.uint64)
    return ImagesEstimate(
        settings=str(images),
        image_bytes=mean,
        original_bytes=float(np.mean([len(stored_bytes(image)) for image in originals])),
        bytes=round(len(source.keys) * (mean + _ROW_OVERHEAD) + units * per_unit),
        by_view=images.are_views,
        pack=seconds / len(encoded),
        show_original=_shown(originals, drawn, view.unmixed, size),
        show=_shown(encoded, drawn, (finishing(view) if packs is None else view).unmixed, size),
    )


def _packed(packs: PackingSource) -> Callable[[Image, int], bytes]:
    return lambda original, _: packs.pack(original)


def _encoded_square(view: View, images: ImagesConfig, original: Image, key: int) -> bytes:
    """Return the encoded square of an image in a view.

    Raises:
        UnreadableImage: It cannot be decoded.
    """
    part = stored_part(view)
    request = BatchRequest(part, np.zeros(1, dtype=np.int64), np.array([key], dtype=np.uint64))
    batch = empty_batch(request, [images.short_side])
    fill(batch, Drawn(request), Decoder(lambda _: original, DECODING), 0, 1)
    for error in batch.failures.values():
        raise error
    pixels_CSS = batch.pixels[images.short_side][0]
    return encode_jpeg(np.ascontiguousarray(pixels_CSS.transpose(1, 2, 0)), images.quality)


def _shown(images: Sequence[Image], hashes: NDArray[np.uint64], view: View, size: int) -> float:
    """Return the seconds per image to decode images in memory and render them, in one thread."""
    request = BatchRequest(view, np.arange(len(images)), hashes)
    rounds = []
    with ViewRenderer(images.__getitem__, [size], threads=1, table=DECODING) as renderer:
        for _ in range(_ROUNDS):
            started = time.perf_counter()
            for _batch in renderer.batches([request]):
                pass
            rounds.append(time.perf_counter() - started)
    return min(rounds) / len(images)
