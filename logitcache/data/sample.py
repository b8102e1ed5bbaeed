"""A sample of decoded images: their sizes, and notes about unusual ones."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from logitcache.data.decode import decode
from logitcache.errors import UnreadableImage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from logitcache.data.source import Source

__all__ = ["ImageSample", "oddity_notes", "sample_images"]

_IMAGES = 16


@dataclass(frozen=True)
class ImageSample:
    """A few images of a set.

    Attributes:
        images: Number of decoded images.
        side: Median of their shorter sides in pixels; None if none is readable.
        oddities: Numbers of images whose pixels are probably not the intended ones, by reason.
    """

    images: int
    side: int | None
    oddities: Mapping[str, int]

    @property
    def notes(self) -> list[str]:
        """Notes about these images for the user."""
        return oddity_notes(self.oddities, f"{self.images} sampled images")


def sample_images(source: Source, table: int) -> ImageSample:
    """Decode a few images, spread over the listing.

    Args:
        source: The images.
        table: Version of the table that images are decoded by.
    """
    sides, oddities = [], Counter[str]()
    for index in range(0, len(source.keys), max(1, len(source.keys) // _IMAGES)):
        try:
            pixels = decode(source.read(index), table, lambda odd: oddities.update([odd]))
        except UnreadableImage:
            continue
        sides.append(min(pixels.shape[1:]))
    return ImageSample(len(sides), int(median(sides)) if sides else None, oddities)


def oddity_notes(oddities: Mapping[str, int], images: str) -> list[str]:
    """Return a note for each reason why pixels of images are probably not the intended ones.

    Args:
        oddities: Numbers of images by reason.
        images: The total, as a phrase.
    """
    return [f"{count} of {images}: {reason}" for reason, count in sorted(oddities.items())]
