"""Strict reading of JPEG files: orientation, and detection of damaged scans.

libjpeg reports damage as warnings and continues; Pillow ignores them, simplejpeg raises the first.
Some warnings concern bytes that pixels do not depend on. Such a file is decoded again without those
bytes, so that they hide no other warning.
"""

from __future__ import annotations

import functools
import re
import struct
from typing import TYPE_CHECKING, NamedTuple

import simplejpeg

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["EXIF_HEADER", "JpegHeader", "decode_strictly", "read_header", "without_stray_bytes"]

EXIF_HEADER = b"Exif\x00\x00"
_XMP_HEADER = b"http://ns.adobe.com/xap/1.0/\x00"
_ADOBE_HEADER = b"Adobe"
_APP0, _APP1, _APP14, _COMMENT, _SOS, _EOI, _FILL = 0xE0, 0xE1, 0xEE, 0xFE, 0xDA, 0xD9, 0xFF
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}
_WITHOUT_LENGTH = {0x01, 0xD8, *range(0xD0, 0xD8)}
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # what ends a scan
_PADDING = re.compile(r"(\d+) extraneous bytes before marker 0xd9")
_ABOUT_HEADER = re.compile(r"Adobe color transform|ICC|extraneous bytes before marker 0x(?!d)")
_START_OF_SCAN = bytes((0xFF, _SOS))
_SHORT_HEADER = 4096  # bytes of a header that is kept, so that all of those kept are below 1 MB
_COEFFICIENTS = 64
_READ_AHEAD = 8  # bytes that libjpeg-turbo has in its bit buffer and does not report
_TRANSFORM_AT = 11  # of the color transform in an Adobe segment, after its length


class _Segment(NamedTuple):
    marker: int
    begin: int
    end: int


class JpegHeader(NamedTuple):
    """Segments before the first scan of a JPEG file.

    Attributes:
        segments: Marker, first byte and end of every segment.
        exif: Contents of its EXIF segments, from the TIFF header on.
        xmp: Content of its XMP segment; empty without one.
        has_stray_bytes: Whether there are bytes between segments that belong to none.
        scan: Offset of the first scan; the length of the file if there is none.
        is_progressive: Whether coefficients are in several scans.
    """

    segments: tuple[_Segment, ...]
    exif: tuple[bytes, ...]
    xmp: bytes
    has_stray_bytes: bool
    scan: int
    is_progressive: bool


def read_header(encoded: bytes) -> JpegHeader:
    """Read the segments of a JPEG file up to its first scan.

    Files of one encoder and size have the same header, which is read once.
    """
    scan = encoded.find(_START_OF_SCAN)
    if 0 < scan < _SHORT_HEADER:
        header = _kept_header(encoded[: scan + 4])
        if header.scan == scan:  # otherwise these bytes are inside of a segment
            return header
    return _parsed_header(encoded)


def _parsed_header(encoded: bytes) -> JpegHeader:
    segments: list[_Segment] = []
    exif: list[bytes] = []
    xmp, stray, at, end = b"", False, 2, len(encoded)
    while at + 4 <= end:
        begin = at
        at = encoded.find(b"\xff", at)
        if at < 0 or at + 4 > end:
            break
        stray = stray or at > begin
        marker = encoded[at + 1]
        if marker in {_SOS, _EOI}:
            end = at
            break
        if marker == _FILL:  # any number of fill bytes may precede a marker
            at += 1
            continue
        if marker == 0 or marker in _WITHOUT_LENGTH:
            stray = stray or marker == 0
            at += 2
            continue
        (length,) = struct.unpack_from(">H", encoded, at + 2)
        after = at + 2 + max(2, length)
        if marker == _APP1:
            body = encoded[at + 4 : after]
            if body.startswith(EXIF_HEADER):
                exif.append(body[len(EXIF_HEADER) :])
            elif body.startswith(_XMP_HEADER) and not xmp:
                xmp = body[len(_XMP_HEADER) :]
        segments.append(_Segment(marker, at, after))
        at = after
    progressive = any(segment.marker in _PROGRESSIVE for segment in segments)
    return JpegHeader(tuple(segments), tuple(exif), xmp, stray, end, progressive)


_kept_header = functools.lru_cache(maxsize=256)(_parsed_header)


def decode_strictly(encoded: bytes, header: JpegHeader, colorspace: str) -> NDArray[np.uint8]:
    """Decode a JPEG file, or raise an error at the first sign of damage to its scans.

    Args:
        encoded: The file.
        header: Header of the file, see :func:`read_header`.
        colorspace: ``RGB``, or ``CMYK`` for a file in that color space.

    Raises:
        ValueError: A scan is damaged or missing.
    """
    _check_scans(encoded, header)
    try:
        return _decoded(encoded, colorspace)
    except ValueError as error:
        if not _ABOUT_HEADER.search(str(error)):
            raise
    # only the first warning is reported: the bytes that it concerns are removed
    return _decoded(_without_text(encoded, header), colorspace)


def _decoded(encoded: bytes, colorspace: str) -> NDArray[np.uint8]:
    """Decode a file whose scans may be padded with zeros."""
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(encoded, colorspace)
    except ValueError as error:
        found = _PADDING.search(str(error))
        if found is None or not _is_padded(encoded, int(found[1])):
            raise
        pixels = simplejpeg.decode_jpeg(encoded, colorspace, strict=False)
    return pixels


def _is_padded(encoded: bytes, left: int) -> bool:
    """Return whether the surplus bytes before the end are all of the zeros in front of it.

    The decoder would have used some of the zeros that overwrote a part of a scan.
    """
    last = encoded.rfind(b"\xff\xd9")
    zeros = last - len(encoded[:last].rstrip(b"\x00"))
    return left <= zeros <= left + _READ_AHEAD


def without_stray_bytes(encoded: bytes, header: JpegHeader) -> bytes:
    """Return the file without the bytes between its segments that belong to none."""
    parts = [encoded[segment.begin : segment.end] for segment in header.segments]
    return b"".join([encoded[:2], *parts, encoded[header.scan :]])


def _without_text(encoded: bytes, header: JpegHeader) -> bytes:
    """Return the file with the segments that pixels depend on, and a valid Adobe segment."""
    parts = [encoded[:2]]
    for marker, begin, end in header.segments:
        segment = encoded[begin:end]
        if marker == _APP14 and segment[4:].startswith(_ADOBE_HEADER):
            parts.append(_plain_adobe(segment, components=len(_components(encoded, header))))
        elif not (_APP0 < marker <= 0xEF or marker == _COMMENT):
            parts.append(segment)
    return b"".join([*parts, encoded[header.scan :]])


def _plain_adobe(segment: bytes, components: int) -> bytes:
    """Return an Adobe segment whose unknown color transform is replaced as libjpeg reads it."""
    at = 4 + _TRANSFORM_AT
    if len(segment) <= at or segment[at] <= 2:
        return segment
    return segment[:at] + bytes([1 if components == 3 else 2]) + segment[at + 1 :]


def _components(encoded: bytes, header: JpegHeader) -> bytes:
    """Return the identifiers of the color components."""
    for marker, begin, end in header.segments:
        if marker in _FRAMES:
            return encoded[begin + 10 : end : 3]
    return b""


def _check_scans(encoded: bytes, header: JpegHeader) -> None:
    """Refuse a progressive file that lacks scans, such as one that was cut between two of them.

    Every coefficient of every component has to be complete down to its last bit.

    Raises:
        ValueError: Scans are missing.
    """
    if not header.is_progressive:
        return
    sent: dict[int, set[int]] = {component: set() for component in _components(encoded, header)}
    at = header.scan
    while at >= 0 and at + 4 <= len(encoded):
        (length,) = struct.unpack_from(">H", encoded, at + 2)
        body = encoded[at + 4 : at + 2 + length]
        if len(body) < 4 or len(body) < 4 + 2 * body[0]:
            break
        first, last, precision = body[-3], body[-2], body[-1] & 15
        if precision == 0:
            for component in body[1 : 1 + 2 * body[0] : 2]:
                sent.setdefault(component, set()).update(range(first, min(last, 63) + 1))
        at = _next_scan(encoded, at + 2 + length)
    if any(len(coefficients) < _COEFFICIENTS for coefficients in sent.values()):
        raise ValueError("the last scans of a progressive JPEG are missing")


def _next_scan(encoded: bytes, at: int) -> int:
    """Return the offset of the next scan after an offset inside of a scan; -1 if there is none."""
    while (found := _MARKER.search(encoded, at)) is not None:
        marker, at = found[0][1], found.start()
        if marker == _SOS:
            return at
        if marker == _EOI or at + 4 > len(encoded):
            return -1
        (length,) = struct.unpack_from(">H", encoded, at + 2)  # tables between scans
        at += 2 + max(2, length)
    return -1
