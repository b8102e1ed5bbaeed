"""PNG files: detection of damaged image data, and encoding."""

from __future__ import annotations

import io
import struct
import zlib
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["check_png", "encoded_png", "without_text"]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHECKED = {b"IHDR", b"PLTE", b"IDAT"}
_NEEDED = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"eXIf", b"IEND"}
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
# Adam7 interlacing: first column, first row, and the steps between columns and rows of each pass
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
           (0, 1, 1, 2))  # fmt: skip


class _Chunk(NamedTuple):
    kind: bytes
    begin: int
    end: int
    sound: bool


def check_png(encoded: bytes) -> None:
    """Check the chunks that pixels depend on by their checksums.

    Where the checksum of a chunk of image data is wrong, that of the compressed data decides, since
    the checksum of the chunk itself may be damaged. Truncated files are left to the decoder.

    Raises:
        ValueError: Pixels would be wrong or missing.
    """
    damaged = {chunk.kind for chunk in _chunks(encoded) if not chunk.sound}
    if damaged & {b"IHDR", b"PLTE"}:
        raise ValueError("the checksum of the PNG header or palette does not match")
    if b"IDAT" in damaged and not _data_are_whole(encoded):
        raise ValueError("the image data of the PNG are damaged")


def encoded_png(pixels: NDArray[np.uint8]) -> bytes:
    """Return pixels (H, W, 3) as the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def without_text(encoded: bytes) -> bytes:
    """Return the file with only the chunks that pixels and their orientation depend on."""
    kept = [encoded[c.begin : c.end] for c in _chunks(encoded) if c.kind in _NEEDED and c.sound]
    return b"".join([_SIGNATURE, *kept])


def _chunks(encoded: bytes) -> list[_Chunk]:
    """Return the complete chunks of a file."""
    chunks, at, view = [], len(_SIGNATURE), memoryview(encoded)
    while at + 12 <= len(encoded):
        length, kind = struct.unpack_from(">I4s", encoded, at)
        end = at + 12 + length
        if end > len(encoded):
            break
        sound = True
        if kind in _CHECKED or kind in _NEEDED:
            (expected,) = struct.unpack_from(">I", encoded, end - 4)
            sound = zlib.crc32(view[at + 4 : end - 4]) == expected
        chunks.append(_Chunk(kind, at, end, sound))
        at = end
    return chunks


def _data_are_whole(encoded: bytes) -> bool:
    """Return whether the compressed image data are intact, by size and their own checksum."""
    headers = (encoded[c.begin + 8 : c.end - 4] for c in _chunks(encoded) if c.kind == b"IHDR")
    header = next(headers, b"")
    if len(header) != 13:
        return False
    width, height, depth, color, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    left = _raw_bytes(width, height, depth * _CHANNELS.get(color, 4), bool(interlaced))
    inflater = zlib.decompressobj()
    try:
        for chunk in _chunks(encoded):
            if chunk.kind == b"IDAT" and left > 0:
                # at most one byte too many: a surplus shows, and no bomb is inflated
                part = inflater.decompress(encoded[chunk.begin + 8 : chunk.end - 4], left + 1)
                left -= len(part)
        # the end of the stream, with its checksum, may not be consumed yet
        left -= len(inflater.decompress(inflater.unconsumed_tail, 1)) if left == 0 else 0
    except zlib.error:
        return False
    return left == 0 and inflater.eof


def _raw_bytes(width: int, height: int, bits: int, interlaced: bool) -> int:
    """Return the bytes of all rows with their filter bytes, before compression."""
    if not interlaced:
        return height * (1 + -(-width * bits // 8))
    total = 0
    for column, row, columns, rows in _PASSES:
        across, down = -(-(width - column) // columns), -(-(height - row) // rows)
        if across > 0 and down > 0:
            total += down * (1 + -(-across * bits // 8))
    return total
