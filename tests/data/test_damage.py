"""Damaged files are refused, never half decoded, as far as their format lets a decoder notice."""

from __future__ import annotations

import io
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from logitcache.data import jpeg
from logitcache.data.decode import decode
from logitcache.data.png import check_png
from logitcache.errors import UnreadableImage
from tests.golden.odd_images import app1, chunk

if TYPE_CHECKING:
    from collections.abc import Callable

SIDE = 48
NOISE = np.random.default_rng(3).integers(0, 90, (SIDE, SIDE, 3))
RAMP = np.linspace(0, 160, SIDE)[None, :, None] + NOISE
KINDS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_rows": 1},
    "4:4:4": {"subsampling": 0},
    "optimized": {"optimize": True},
    "grey": {},
    "cmyk": {},
    "exif": {"exif": Image.Exif()},
}
KINDS["exif"]["exif"][0x0112] = 3


def jpeg_of(kind: str) -> bytes:
    image = Image.fromarray(RAMP.astype(np.uint8))
    image = image.convert({"grey": "L", "cmyk": "CMYK"}.get(kind, "RGB"))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88, **KINDS[kind])
    return buffer.getvalue()


def png_of(mode: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(RAMP.astype(np.uint8)).convert(mode).save(buffer, "PNG")
    return buffer.getvalue()


JPEGS = {kind: jpeg_of(kind) for kind in KINDS}
PNGS = {mode: png_of(mode) for mode in ("RGB", "RGBA", "L", "P", "1")}


def scan_of(content: bytes) -> int:
    """Return where the data of the first scan begin."""
    at = content.index(b"\xff\xda") + 2
    return at + int.from_bytes(content[at : at + 2], "big")


def refused(content: bytes) -> bool:
    try:
        decode(content)
    except UnreadableImage:
        return True
    return False


@pytest.mark.requirement("V5.13", "V5.19")
@given(st.sampled_from(list(KINDS)), st.floats(0, 1), st.booleans())
def test_a_jpeg_that_is_cut_and_closed_is_refused(kind: str, share: float, closed: bool) -> None:
    """But for its last bytes, which libjpeg reads ahead of the pixels that it makes of them."""
    content = JPEGS[kind]
    first, last = scan_of(content), len(content) - 10
    at = first + int(share * (last - first))
    assert refused(content[:at] + (b"\xff\xd9" if closed else b""))


@pytest.mark.requirement("V5.14", "V5.19")
@given(st.sampled_from(list(KINDS)), st.floats(0, 0.9))
def test_a_jpeg_that_ends_in_zeros_is_refused(kind: str, share: float) -> None:
    content = JPEGS[kind]
    at = scan_of(content) + int(share * (len(content) - scan_of(content)))
    assert refused(content[:at] + bytes(len(content) - at))
    assume(kind != "restarts")  # zeros may be whole pictures up to the next marker
    assert refused(content[:at] + bytes(len(content) - at - 2) + b"\xff\xd9")


@pytest.mark.requirement("V5.14", "V5.20")
@given(st.sampled_from(list(PNGS)), st.floats(0, 1), st.integers(1, 300))
def test_a_png_with_a_hole_or_a_gap_is_refused_or_whole(mode: str, share: float, size: int) -> None:
    content = PNGS[mode]
    first, last = content.index(b"IDAT") + 4, len(content) - 16
    at = first + int(share * (last - first - 1))
    end = min(last, at + size)
    assume(any(content[at:end]))
    assert refused(content[:at] + bytes(end - at) + content[end:])
    for cut in (content[:at] + content[end:], content[:at] + content[-12:]):
        # behind the last pixel there is a checksum, without which no pixel is missing
        assert refused(cut) or torch.equal(decode(cut), decode(content))


@pytest.mark.requirement("V5.15", "V5.19")
@pytest.mark.parametrize("kind", KINDS)
def test_bytes_that_no_pixel_comes_from_do_not_matter(kind: str) -> None:
    content = JPEGS[kind]
    whole = decode(content)
    second = 4 + int.from_bytes(content[4:6], "big")  # where the segment after the first begins
    for name, harmless in {
        "zeros that pad the scan": content[:-2] + bytes(40) + content[-2:],
        "bytes behind the end": content + b"motion photo" * 99,
        "fill bytes before a marker": content[:2] + b"\xff\xff" + content[2:],
        "stray bytes before a marker": content[:second] + b"\0\x17\0" + content[second:],
        "an EXIF block that is none": content[:2] + app1(b"Exif\0\0broken") + content[2:],
        "an empty segment": content[:2] + b"\xff\xe5\x00\x02" + content[2:],
        "a broken profile": content[:2] + b"\xff\xe2\x00\x10ICC_PROFILE\0\1\2" + content[2:],
    }.items():
        assert torch.equal(decode(harmless), whole), name


def test_stray_bytes_do_not_hide_damage() -> None:
    content = JPEGS["baseline"]
    half = content[: len(content) * 3 // 4] + b"\xff\xd9"
    second = 4 + int.from_bytes(content[4:6], "big")
    assert refused(half[:second] + b"\0\x17\0" + half[second:])


def test_an_unknown_color_transform_does_not_hide_damage() -> None:
    """libjpeg warns of it first, and of nothing afterwards."""
    content = JPEGS["baseline"]
    odd = b"\xff\xee\x00\x0eAdobe\x00\x64\0\0\0\0\x09"
    with_odd = content[:2] + odd + content[2:]
    assert torch.equal(decode(with_odd), decode(content))
    assert refused(with_odd[: len(with_odd) * 3 // 4] + b"\xff\xd9")


@pytest.mark.requirement("V5.19")
def test_progressive_scans_that_are_missing_are_noticed() -> None:
    """Cut between two scans, so that no scan is damaged."""
    content = JPEGS["progressive"]
    starts = [i for i in range(len(content)) if content[i : i + 2] == b"\xff\xda"]
    assert len(starts) > 5
    for start in starts[1:]:
        # the tables of the next scan, if any, come before its marker
        tables = content.rfind(b"\xff\xc4", 0, start)
        previous = max(s for s in starts if s < start)
        end = tables if tables > previous else start
        assert refused(content[:end] + b"\xff\xd9")


def with_chunk(extra: bytes) -> bytes:
    content = PNGS["RGB"]
    at = content.index(b"IDAT") - 4
    return content[:at] + extra + content[at:]


@pytest.mark.requirement("V5.15")
@pytest.mark.parametrize(
    "extra",
    [
        chunk(b"tEXt", b"k\0v", checksum=b"\1\2\3\4"),
        chunk(b"zTXt", b"k\0\0" + b"no zlib"),
        chunk(b"zTXt", b"k\0\0" + zlib.compress(b"a" * (3 << 20))),
        chunk(b"iTXt", b"k\0\1\0\0\0" + zlib.compress(b"a" * (3 << 20))),
        chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(3 << 20))),
        chunk(b"iCCP", b"p\0\0broken"),
        chunk(b"tIME", b"\0", checksum=b"\0\0\0\0"),
        chunk(b"eXIf", b"broken"),
        chunk(b"gAMA", b""),
    ],
)
def test_text_and_profiles_do_not_make_a_png_unreadable(extra: bytes) -> None:
    assert torch.equal(decode(with_chunk(extra)), decode(PNGS["RGB"]))


@pytest.mark.requirement("V5.20")
@pytest.mark.parametrize("interlaced", [False, True])
def test_a_wrong_checksum_of_right_image_data_is_passed_over(interlaced: bool) -> None:
    content = interlaced_png() if interlaced else PNGS["RGB"]
    begin = content.index(b"IDAT") - 4
    end = begin + 12 + int.from_bytes(content[begin : begin + 4], "big")
    damaged = content[: end - 4] + b"\0\0\0\0" + content[end:]
    check_png(damaged)
    hole = damaged[: begin + 60] + bytes(8) + damaged[begin + 68 :]
    with pytest.raises(ValueError, match="image data of the PNG are damaged"):
        check_png(hole)


def interlaced_png() -> bytes:
    """Return a PNG of Adam7 passes, all pixels of one level; Pillow writes none."""
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2))
    raw, side = b"", 13
    for column, row, columns, rows in (*passes, (0, 1, 1, 2)):
        across = len(range(column, side, columns))
        raw += (b"\0" + b"\x37" * across) * (len(range(row, side, rows)) if across else 0)
    header = side.to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 1])
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(raw, 0)), chunk(b"IEND", b""))
    content = b"\x89PNG\r\n\x1a\n" + b"".join(parts)
    assert (decode(content) == 0x37).all()
    return content


def odd_16(top: int) -> Callable[[], bytes]:
    def make() -> bytes:
        buffer = io.BytesIO()
        levels = np.linspace(0, top, SIDE * SIDE).astype(np.uint16).reshape(SIDE, SIDE)
        Image.fromarray(levels).save(buffer, "PNG")
        return buffer.getvalue()

    return make


def odd_float(top: float) -> Callable[[], bytes]:
    def make() -> bytes:
        buffer = io.BytesIO()
        levels = np.linspace(0, top, SIDE * SIDE, dtype=np.float32).reshape(SIDE, SIDE)
        Image.fromarray(levels).save(buffer, "TIFF")
        return buffer.getvalue()

    return make


@pytest.mark.requirement("V5.18")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (odd_16(4095), "12 bits"),
        (odd_16(65535), None),
        (odd_float(1), "floating-point"),
        (odd_float(255), None),
    ],
)
def test_what_is_probably_not_meant_is_reported(
    make: Callable[[], bytes], message: str | None
) -> None:
    found: list[str] = []
    decode(make(), on_odd=found.append)
    assert len(found) == (message is not None)
    assert message is None or message in found[0]


@pytest.mark.requirement("V5.4")
@pytest.mark.parametrize("where", ["exif", "late exif", "xmp", "xmp element", "png"])
def test_orientation_counts_wherever_it_is(where: str) -> None:
    plain = JPEGS["baseline"]
    exif = Image.Exif()
    exif[0x0112] = 6
    block = app1(b"Exif\0\0" + exif.tobytes().removeprefix(b"Exif\0\0"))
    filler = b"\xff\xe2\xff\xff" + bytes(65533)
    xmp = b"http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation"
    content = {
        "exif": plain[:2] + block + plain[2:],
        "late exif": plain[:2] + filler + filler + block + plain[2:],
        "xmp": plain[:2] + app1(xmp + b'="6"/>') + plain[2:],
        "xmp element": plain[:2] + app1(xmp + b">6</tiff:Orientation>") + plain[2:],
        "png": with_chunk(chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))),
    }[where]
    upright = decode(PNGS["RGB"] if where == "png" else plain)
    assert torch.equal(decode(content), torch.rot90(upright, -1, (1, 2)))


def test_a_header_is_that_of_the_whole_file_whatever_is_kept() -> None:
    """The marker of a scan may be inside of a segment, be cut off, or be missing."""
    plain = jpeg_of("baseline")
    thumbnail = app1(b"Exif\x00\x00" + jpeg_of("progressive")[:900])
    files = {
        "plain": plain,
        "with a thumbnail": plain[:2] + thumbnail + plain[2:],
        "with stray bytes": plain[:2] + b"\xff\xda\x00" + plain[2:],
        "after the end": plain[:2] + b"\xff\xd9" + plain[2:],
        "progressive": jpeg_of("progressive"),
        "exif": jpeg_of("exif"),
    }
    for name, encoded in files.items():
        scan = encoded.find(b"\xff\xda")
        for end in (len(encoded), scan, scan + 1, scan + 2, scan + 3, scan + 4, scan + 5, 20, 4):
            part = encoded[:end]
            expected = jpeg._parsed_header(part)
            assert jpeg.read_header(part) == jpeg.read_header(part) == expected, (name, end)
