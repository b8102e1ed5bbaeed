"""Encoded bytes to RGB pixels, by one table for both stages.

=====================  ==========================================================================
input                  becomes
=====================  ==========================================================================
JPEG                   simplejpeg (libjpeg-turbo); Pillow if it carries EXIF data
any other              Pillow, first frame, turned as its EXIF says; so are CMYK and flawed JPEGs
grey                   three equal channels
palette                its colours
alpha                  dropped, as ``convert("RGB")`` does in timm and torchvision
16-bit grey            the high byte
pixels without bytes   taken as they are: (H, W) repeated, (H, W, 3) transposed
=====================  ==========================================================================

The content decides, never the file's extension. simplejpeg rather than torchvision's decoder: the
pixels are the same, it is faster, its libjpeg-turbo comes with it, and torchvision deprecates its
own (``docs/design/002-jpeg-decoder.md``).
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
import simplejpeg
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from logitcache.errors import UnreadableImage

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["decode"]

_JPEG = b"\xff\xd8\xff"
_EXIF = b"Exif\x00\x00"
_EXIF_WITHIN = 65536
_MAX_PIXELS = 178_956_970  # Pillow's own limit: a quarter of a GiB as RGB


def decode(image: bytes | NDArray[np.uint8]) -> Tensor:
    """Decode one image.

    Args:
        image: Encoded bytes, or pixels (H, W) or (H, W, 3) in uint8.

    Returns:
        uint8 tensor (3, H, W), RGB; the memory is (H, W, 3), as decoders write it.

    Raises:
        UnreadableImage: Truncated, empty or no image at all.
    """
    if isinstance(image, np.ndarray):
        return _from_pixels(image)
    try:
        if image.startswith(_JPEG):
            return _from_pixels(_decode_jpeg(image))
        return _from_pixels(_decode_with_pillow(image))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UnreadableImage(
            "cannot decode this image", got=f"{len(image)} bytes; {_first_line(error)}"
        ) from error


def _from_pixels(pixels: NDArray[np.uint8]) -> Tensor:
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _decode_jpeg(encoded: bytes) -> NDArray[np.uint8]:
    height, width, colours, _ = simplejpeg.decode_jpeg_header(encoded)
    if height * width > _MAX_PIXELS:
        raise Image.DecompressionBombError(f"{width} x {height} pixels")
    if colours in {"CMYK", "YCCK"} or _EXIF in encoded[:_EXIF_WITHIN]:
        return _decode_with_pillow(encoded)
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(encoded)
    except ValueError:  # also for stray bytes, which Pillow reads over; it refuses truncated files
        return _decode_with_pillow(encoded)
    return pixels


def _decode_with_pillow(encoded: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(encoded)) as opened:
        if opened.width * opened.height > _MAX_PIXELS:
            raise Image.DecompressionBombError(f"{opened.width} x {opened.height} pixels")
        upright = ImageOps.exif_transpose(opened)
        if upright.mode.startswith("I"):
            return (np.asarray(upright) >> 8).astype(np.uint8)
        return np.array(upright.convert("RGB"))


def _first_line(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "no image format that Pillow knows"
    return str(error).partition("\n")[0] or type(error).__name__
