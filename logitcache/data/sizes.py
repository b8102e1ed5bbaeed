"""How large the images of a set are, from a few of them."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

from logitcache.data.decode import decode
from logitcache.errors import UnreadableImage

if TYPE_CHECKING:
    from logitcache.data.source import Source

__all__ = ["median_side"]

_IMAGES = 16


def median_side(source: Source, table: int) -> int | None:
    """Return the median of the shorter side of some images, in pixels; None if none is readable.

    Args:
        source: The images; a few of them, spread over the listing, are decoded.
        table: Version of the table that images are decoded by.
    """
    sides = []
    for index in range(0, len(source.keys), max(1, len(source.keys) // _IMAGES)):
        try:
            sides.append(min(decode(source.read(index), table).shape[1:]))
        except UnreadableImage:
            continue
    return int(median(sides)) if sides else None
