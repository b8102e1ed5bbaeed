"""Decoding of encoded images to RGB pixels, by one table for both stages.

=====================  ==========================================================================
input                  becomes
=====================  ==========================================================================
JPEG                   simplejpeg (libjpeg-turbo); Pillow if it is CMYK, or of a kind that
                       simplejpeg does not know
any other              Pillow; its content decides, never the extension; formats are a fixed list
orientation            rotated and mirrored by EXIF, or else XMP, wherever they are in the file;
                       metadata that cannot be read has no effect
gray, 1 bit            three equal channels
palette                its colors
alpha                  dropped, as ``convert("RGB")`` does in timm and torchvision
CMYK, YCCK, LAB        converted by Pillow; embedded profiles are not applied
16-bit gray            the high byte; 32-bit integers are first clipped to 16 bits
16-bit color           the high byte of each channel, as Pillow opens it
floating point         clipped to 0 to 255
animated               the first frame
truncated              an error
damaged                an error where the format lets a decoder notice: JPEG scans, PNG
text, profiles         skipped, damaged or not: pixels do not depend on them
over 178 956 970       an error before anything is allocated (a decompression bomb)
pixels
pixels without bytes   used as they are: (H, W) repeated, (H, W, 3) transposed
=====================  ==========================================================================

This is table 2. Images of caches of logitcache 0.1 are always decoded by table 1: there, damaged
JPEG and PNG files became half images, EXIF was read from the first 64 KiB only, XMP only next to
EXIF, and long or damaged text made a PNG unreadable (``docs/views.md``).

simplejpeg rather than torchvision's decoder: the pixels are the same, it is faster, its
libjpeg-turbo comes with it, and torchvision deprecates its own
(``docs/design/002-jpeg-decoder.md``).
"""

from __future__ import annotations

import contextlib
import functools
import io
import re
import struct
import zlib
from typing import TYPE_CHECKING

import numpy as np
import simplejpeg
import torch
from PIL import Image, UnidentifiedImageError

from logitcache.data.jpeg import (
    EXIF_HEADER,
    JpegHeader,
    decode_strictly,
    read_header,
    without_stray_bytes,
)
from logitcache.data.png import check_png, without_text
from logitcache.errors import UnreadableImage

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["DECODING", "TABLES", "decode"]

DECODING = 2
"""Version of the table for new caches, and for images without a cache."""

_JPEG = b"\xff\xd8\xff"
_PNG = b"\x89PNG\r\n\x1a\n"
_EXIF_WITHIN = 65536
_MAX_PIXELS = 178_956_970  # Pillow's own limit: half a GiB as RGB
_FORMATS = ("JPEG", "MPO", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF")
_ORIENTATION = 0x0112
_XMP_ORIENTATION = re.compile(rb"""tiff:Orientation\s*(?:=\s*["']|>)\s*([1-8])""")
_DARK_LEVELS = 4096  # of 16 bits: all that a sensor of 12 bits fills
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
    RuntimeError,  # of AVIF; NotImplementedError is one, of a variant that a plugin cannot read
    AttributeError,
    AssertionError,
    MemoryError,
    struct.error,
    zlib.error,
)
"""Errors that Pillow's plugins raise for unexpected bytes."""


def decode(
    image: bytes | NDArray[np.uint8],
    table: int = DECODING,
    on_odd: Callable[[str], None] | None = None,
) -> Tensor:
    """Decode one image.

    Args:
        image: Encoded bytes, or pixels (H, W) or (H, W, 3) in uint8.
        table: Version of the table; that of a cache for its images.
        on_odd: Called with a note about an image whose pixels are probably not the intended ones.

    Returns:
        uint8 tensor (3, H, W), RGB; the memory is (H, W, 3), as decoders write it.

    Raises:
        UnreadableImage: The image is truncated, damaged or empty, or it is not an image.
    """
    if isinstance(image, np.ndarray):
        return _from_pixels(image)
    try:
        return _from_pixels(TABLES[table](image, on_odd or (lambda odd: None)))
    except (*_DAMAGED, Image.DecompressionBombError) as error:
        why = str(error).partition("\n")[0] or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            why = f"none of {', '.join(_formats())}"
        got = f"{len(image)} bytes; {why}"
        raise UnreadableImage("the image cannot be decoded", got=got) from error


def _from_pixels(pixels: NDArray[np.uint8]) -> Tensor:
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    # numpy's transpose keeps the interpreter lock, which threads wait for
    return torch.from_numpy(pixels.transpose(2, 0, 1))


def _decode_by_table_1(encoded: bytes, on_odd: Callable[[str], None]) -> NDArray[np.uint8]:
    """Decode as logitcache 0.1 did."""
    if not encoded.startswith(_JPEG):
        return _decode_with_pillow(encoded, on_odd)
    height, width, colors, _ = simplejpeg.decode_jpeg_header(encoded)
    if height * width > _MAX_PIXELS:
        raise Image.DecompressionBombError(f"{width} x {height} pixels")
    if colors in {"CMYK", "YCCK"} or EXIF_HEADER in encoded[:_EXIF_WITHIN]:
        return _decode_with_pillow(encoded, on_odd)
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(encoded)
    except ValueError:  # also for stray bytes, which Pillow skips; it refuses truncated files
        return _decode_with_pillow(encoded, on_odd)
    return pixels


def _decode_by_table_2(encoded: bytes, on_odd: Callable[[str], None]) -> NDArray[np.uint8]:
    """Decode by the table above."""
    if encoded.startswith(_JPEG):
        return _decode_jpeg(encoded, on_odd)
    if encoded.startswith(_PNG):
        check_png(encoded)
        try:
            return _decode_with_pillow(encoded, on_odd)
        except _DAMAGED:  # perhaps because of text that is damaged or too long
            encoded = without_text(encoded)
    return _decode_with_pillow(encoded, on_odd)


TABLES = {1: _decode_by_table_1, 2: _decode_by_table_2}
"""Decoder of each version of the table."""


def _decode_jpeg(encoded: bytes, on_odd: Callable[[str], None]) -> NDArray[np.uint8]:
    header = read_header(encoded)
    if header.has_stray_bytes:
        encoded = without_stray_bytes(encoded, header)
        header = read_header(encoded)
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(encoded)
    except ValueError:  # for example, a chroma subsampling that TurboJPEG does not know
        return _decode_with_pillow(encoded, on_odd)
    if height * width > _MAX_PIXELS:
        raise Image.DecompressionBombError(f"{width} x {height} pixels")
    if colors in {"CMYK", "YCCK"}:
        decode_strictly(encoded, header, "CMYK")
        return _decode_with_pillow(encoded, on_odd)
    pixels = decode_strictly(encoded, header, "RGB")
    turn = _TURNS.get(_orientation_of(header))
    return pixels if turn is None else np.array(Image.fromarray(pixels).transpose(turn))


def _orientation_of(header: JpegHeader) -> int:
    """Return the orientation in EXIF, or else in XMP; 1 where neither has one."""
    for block in header.exif:
        exif = Image.Exif()
        with contextlib.suppress(*_DAMAGED):  # a damaged block has no effect, as in image viewers
            exif.load(EXIF_HEADER + block)
            return int(exif[_ORIENTATION])
    in_xmp = _XMP_ORIENTATION.search(header.xmp)
    return int(in_xmp[1]) if in_xmp else 1


def _decode_with_pillow(encoded: bytes, on_odd: Callable[[str], None]) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(encoded), formats=_formats()) as opened:
        if opened.width * opened.height > _MAX_PIXELS:
            raise Image.DecompressionBombError(f"{opened.width} x {opened.height} pixels")
        opened.load()  # first: Pillow rotates TIFF files while it loads them
        turn = _TURNS.get(_orientation(opened))
        upright = opened if turn is None else opened.transpose(turn)
        if upright.mode.startswith("I"):
            levels = np.clip(np.asarray(upright), 0, 65535)
            if levels.max() < _DARK_LEVELS:
                on_odd("16-bit gray that uses at most 12 bits: decoded as almost black")
            high: NDArray[np.uint8] = (levels >> 8).astype(np.uint8)
            return high
        if upright.mode == "F" and float(np.asarray(upright).max()) <= 1:
            on_odd("floating-point values from 0 to 1: decoded as black, since levels go to 255")
        if upright.mode == "P" and isinstance(upright.info.get("transparency"), bytes):
            upright = upright.convert("RGBA")  # the same colors, without Pillow's warning
        # a copy: torch warns about the read-only memory of an image
        return np.array(upright.convert("RGB"))


def _orientation(opened: Image.Image) -> int:
    """Return the orientation in EXIF, or else in XMP, as Pillow reads them."""
    try:
        return int(opened.getexif().get(_ORIENTATION, 1))
    except _DAMAGED:  # a damaged block has no effect, as in image viewers
        return 1


@functools.cache
def _formats() -> list[str]:
    """Return the permitted formats; no plugin that would start another program is among them."""
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]
