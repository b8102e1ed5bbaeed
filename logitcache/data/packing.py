"""Packing of images: each is decoded, resized to a short side, and encoded once as JPEG.

The packed bytes are what a cache stores and what both stages decode, so their pixels are the same
wherever they are read. Other versions of the libraries may encode other bytes: what is promised is
the stored bytes and what they decode to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import simplejpeg
from PIL import Image
from pydantic import Field, model_validator

from logitcache.config import Config
from logitcache.data.decode import decode
from logitcache.data.source import left_out_of, notes_of
from logitcache.errors import UnreadableImage
from logitcache.label_sets import label_sets_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from logitcache.data.source import Source

__all__ = ["ImagesConfig", "PackingSource", "encode_jpeg", "pack", "packing_of"]

_LONGEST = 65_500  # of libjpeg
_FULL_COLOR = 64
_SIDE = 256  # by default


class ImagesConfig(Config):
    """Images that are stored in the cache, written as ``packed``, ``packed:256`` or ``views``.

    Attributes:
        kind: ``packed``: each image is decoded, resized and encoded once as JPEG, and views are
            rendered from it. ``views``: each view of each image is rendered once and encoded as
            JPEG. The teachers are run on what is stored, and students need no other images.
        side: ``packed``: largest length of the shorter side in pixels, 256 by default; smaller
            images are not enlarged. ``views``: side of the squares; by default the input size of
            the teachers, which must be the same for all.
        quality: JPEG quality.
    """

    kind: Literal["packed", "views"] = "packed"
    side: int | None = Field(default=None, ge=8, le=4096)
    quality: int = Field(default=92, ge=50, le=100)

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        kind, colon, side = value.partition(":")
        if colon and not side.isdecimal():
            raise ValueError(f"{value!r} has no side in pixels; write for example packed:256")
        return {"kind": kind, "side": int(side)} if colon else {"kind": kind}

    @property
    def are_views(self) -> bool:
        """Whether rendered views are stored instead of images."""
        return self.kind == "views"

    @property
    def short_side(self) -> int:
        """Largest length of the shorter side of packed images."""
        return self.side or _SIDE

    def same_as(self, other: ImagesConfig | None) -> bool:
        """Return whether the same is stored; views without a side have that of the other ones."""
        if other is None:
            return False
        same_side = self.side is None if self.are_views else False
        same_side = same_side or self.short_side == other.short_side
        return (self.kind, self.quality) == (other.kind, other.quality) and same_side

    def __str__(self) -> str:
        side = self.side if self.are_views else self.short_side
        return f"{self.kind}:{side or 'SIDE'}, quality {self.quality}"


def pack(image: bytes | NDArray[np.uint8], config: ImagesConfig, table: int) -> bytes:
    """Return an image as JPEG bytes of bounded size; see ``docs/views.md``.

    Args:
        image: Encoded bytes, or pixels (H, W) or (H, W, 3) in uint8.
        config: Side and quality.
        table: Version of the table that the image is decoded by.

    Raises:
        UnreadableImage: It cannot be decoded, or is too long for a JPEG file.
    """
    pixels_HWC = np.ascontiguousarray(decode(image, table).permute(1, 2, 0).numpy())
    height, width = pixels_HWC.shape[:2]
    short = min(height, width)
    if short > config.short_side:
        height, width = (
            max(1, round(side * config.short_side / short)) for side in (height, width)
        )
    if max(height, width) > _LONGEST:
        raise UnreadableImage(
            "the image is too long to be packed",
            expected=f"sides up to {_LONGEST} pixels after resizing",
            got=f"{width} x {height} pixels",
            hint="remove the image, or choose a smaller side",
        )
    if short > config.short_side:
        resized = Image.fromarray(pixels_HWC).resize((width, height), Image.Resampling.BICUBIC)
        pixels_HWC = np.asarray(resized)
    return encode_jpeg(pixels_HWC, config.quality)


def encode_jpeg(pixels_HWC: NDArray[np.uint8], quality: int) -> bytes:
    """Return pixels as baseline JPEG bytes; see ``docs/views.md``."""
    encoded: bytes = simplejpeg.encode_jpeg(
        pixels_HWC,
        quality=quality,
        colorspace="RGB",
        # half the resolution of color is much of a small image
        colorsubsampling="444" if min(pixels_HWC.shape[:2]) <= _FULL_COLOR else "420",
        fastdct=False,
    )
    return encoded


class PackingSource:
    """A source whose images are packed when they are read.

    Args:
        originals: The images; keys, labels and sizes are theirs.
        config: Side and quality.
        table: Version of the table that they are decoded by.

    Attributes:
        packing: Side and quality.
    """

    def __init__(self, originals: Source, config: ImagesConfig, table: int) -> None:
        self.originals, self.packing = originals, config
        self._table = table
        self.description = f"{originals.description}, {config.kind}:{config.short_side}"
        self.class_names = originals.class_names
        self.label_sets = label_sets_of(originals)
        self.left_out = left_out_of(originals)
        self.notes = notes_of(originals)

    @property
    def keys(self) -> Sequence[str]:
        """Key of every image."""
        return self.originals.keys

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Bytes of every original image, int64 (N,)."""
        return self.originals.sizes

    @property
    def labels(self) -> NDArray[np.int32]:
        """Class of every image, int32 (N,)."""
        return self.originals.labels

    def with_originals(self, originals: Source) -> PackingSource:
        """Return a source that packs other images in the same way."""
        return PackingSource(originals, self.packing, self._table)

    def read(self, index: int) -> bytes:
        """Return an image, packed.

        Raises:
            UnreadableImage: The original cannot be decoded.
        """
        return self.pack(self.originals.read(index))

    def pack(self, original: bytes | NDArray[np.uint8]) -> bytes:
        """Return the packed bytes of an original image."""
        return pack(original, self.packing, self._table)


def packing_of(source: Source) -> PackingSource | None:
    """Return a source as one whose images are packed; None if they are not."""
    return source if isinstance(source, PackingSource) else None
