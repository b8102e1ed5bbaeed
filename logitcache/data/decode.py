"""Encoded bytes to RGB pixels, by one table for both stages.

=====================  ==========================================================================
input                  becomes
=====================  ==========================================================================
JPEG                   simplejpeg (libjpeg-turbo); Pillow if it carries EXIF data in its first
                       64 KiB, is CMYK, or simplejpeg refuses it
any other              Pillow; its content decides, never the extension; formats are a fixed list
orientation            turned and mirrored as EXIF says, also in PNG, WebP and TIFF; EXIF data that
                       cannot be read turn nothing
grey, 1 bit            three equal channels
palette                its colours
alpha                  dropped, as ``convert("RGB")`` does in timm and torchvision
CMYK, YCCK, LAB        what Pillow converts them to; embedded profiles are not applied
16-bit grey            the high byte; 32-bit integers are first clipped to 16 bits
16-bit colour          the high byte of each channel, as Pillow opens it
floating point         clipped to 0 to 255
animated               the first frame
truncated, damaged     an error, never half a picture
over 178 956 970       an error before anything is allocated (a decompression bomb)
pixels
pixels without bytes   taken as they are: (H, W) repeated, (H, W, 3) transposed
=====================  ==========================================================================

simplejpeg rather than torchvision's decoder: the pixels are the same, it is faster, its
libjpeg-turbo comes with it, and torchvision deprecates its own
(``docs/design/002-jpeg-decoder.md``).
"""

from __future__ import annotations

import functools
import io
import struct
import zlib
from typing import TYPE_CHECKING

import numpy as np
import simplejpeg
import torch
from PIL import Image, UnidentifiedImageError

from logitcache.errors import UnreadableImage

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["decode"]

_JPEG = b"\xff\xd8\xff"
_EXIF = b"Exif\x00\x00"
_EXIF_WITHIN = 65536
_MAX_PIXELS = 178_956_970  # Pillow's own limit: half a GiB as RGB
_FORMATS = ("JPEG", "MPO", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF")
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_DAMAGED = (
    OSError,
    EOFError,
    LookupError,
    OverflowError,
    SyntaxError,
    TypeError,
    ValueError,
    NotImplementedError,  # a variant of a format that a plugin knows of and cannot read
    struct.error,
    zlib.error,
)
"""What Pillow's plugins raise for bytes they did not expect."""


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
    except (*_DAMAGED, Image.DecompressionBombError) as error:
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
    with Image.open(io.BytesIO(encoded), formats=_formats()) as opened:
        if opened.width * opened.height > _MAX_PIXELS:
            raise Image.DecompressionBombError(f"{opened.width} x {opened.height} pixels")
        opened.load()  # first: Pillow turns TIFF files while it loads them
        turn = _TURNS.get(_orientation(opened))
        upright = opened if turn is None else opened.transpose(turn)
        if upright.mode.startswith("I"):
            levels = np.clip(np.asarray(upright), 0, 65535)
            high: NDArray[np.uint8] = (levels >> 8).astype(np.uint8)
            return high
        if upright.mode == "P" and isinstance(upright.info.get("transparency"), bytes):
            upright = upright.convert("RGBA")  # the same colours, without Pillow's warning
        return np.array(upright.convert("RGB"))


def _orientation(opened: Image.Image) -> int:
    """Return what EXIF says; a damaged block says nothing, as in every viewer."""
    try:
        return int(opened.getexif().get(_ORIENTATION, 1))
    except _DAMAGED:
        return 1


@functools.cache
def _formats() -> list[str]:
    """Return the formats that are read: no plugin that would start another program."""
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


def _first_line(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"none of {', '.join(_formats())}"
    return str(error).partition("\n")[0] or type(error).__name__
