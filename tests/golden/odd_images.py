"""Golden decodings: odd image files, and what each version of the decoding table makes of them.

``python -m tests.golden.odd_images files`` writes ``decoding/files.tar.xz``, once;
``python -m tests.golden.odd_images decode N`` writes ``decoding/table-N.json`` with table N, once
per version of the table. Encoders differ between versions, so the files are kept, not made again.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
import sys
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

HERE = Path(__file__).parent / "decoding"
FILES = HERE / "files.tar.xz"
WIDTH, HEIGHT = 64, 48
XMP = (
    b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf='
    b'"http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description xmlns:tiff='
    b'"http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
)


def picture() -> Image.Image:
    """Return a gradient with some noise, so that every part differs from every other."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    noise = np.random.default_rng(0).integers(0, 40, (HEIGHT, WIDTH, 3))
    planes = [x * 215 // (WIDTH - 1), y * 215 // (HEIGHT - 1), (x + y) * 3 % 215]
    return Image.fromarray((np.stack(planes, -1) + noise).astype(np.uint8))


def encoded(image: Image.Image | None = None, kind: str = "JPEG", **options: Any) -> bytes:
    """Return an image as a file; a JPEG of quality 90 by default."""
    buffer = io.BytesIO()
    if kind == "JPEG":
        options.setdefault("quality", 90)
    (image or picture()).save(buffer, kind, **options)
    return buffer.getvalue()


def exif(orientation: int | None) -> Image.Exif:
    """Return an EXIF block with an orientation, or one that names a camera alone."""
    block = Image.Exif()
    if orientation is None:
        block[0x010F] = "Canon"
    else:
        block[0x0112] = orientation
    return block


def app1(body: bytes) -> bytes:
    """Return an APP1 segment of a JPEG."""
    return b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body


def chunk(kind: bytes, body: bytes, checksum: bytes | None = None) -> bytes:
    """Return a chunk of a PNG."""
    right = struct.pack(">I", zlib.crc32(kind + body))
    return struct.pack(">I", len(body)) + kind + body + (checksum or right)


def late_exif(block: Image.Exif) -> bytes:
    """Return a JPEG whose EXIF block follows a profile of 70 kB, as some editors write it."""
    whole = encoded(exif=block, icc_profile=bytes(70000))
    segments, at = [], 2
    while whole[at + 1] != 0xDA:
        length = struct.unpack(">H", whole[at + 2 : at + 4])[0]
        segments.append(whole[at : at + 2 + length])
        at += 2 + length
    last = [s for s in segments if s[1] == 0xE1]
    first = [s for s in segments if 0xE0 <= s[1] <= 0xEF and s[1] != 0xE1]
    rest = [s for s in segments if not 0xE0 <= s[1] <= 0xEF]
    return b"\xff\xd8" + b"".join([*first, *last, *rest]) + whole[at:]


def halved(content: bytes, *, fill: bytes = b"", zeros: bool = False) -> bytes:
    """Return the first half of a file, with an end or with zeros behind it."""
    half = len(content) // 2
    return content[:half] + (bytes(len(content) - half) if zeros else fill)


def with_text(zip_: bool, international: bool = False) -> bytes:
    """Return a PNG with 2 MiB of text."""
    info = PngImagePlugin.PngInfo()
    if international:
        info.add_itxt("x", "a" * (2 << 20), zip=zip_)
    else:
        info.add_text("x", "a" * (2 << 20), zip=zip_)
    return encoded(kind="PNG", pnginfo=info)


def flipped(content: bytes, at: int, bit: int) -> bytes:
    """Return a file with one bit changed."""
    changed = bytearray(content)
    changed[at] ^= bit
    return bytes(changed)


def second() -> dict[str, Any]:
    """Return the options of :func:`encoded` that add a second, black picture."""
    return {"save_all": True, "append_images": [Image.new("RGB", (WIDTH, HEIGHT))]}


def files() -> dict[str, bytes]:
    """Return all files by name; the ending tells nothing, as everywhere."""
    jpeg, png = encoded(), encoded(kind="PNG")
    progressive, webp = encoded(progressive=True), encoded(kind="WEBP", quality=90)
    with_exif = encoded(exif=exif(1))
    scan = jpeg.index(b"\xff\xda")
    middle = scan + (len(jpeg) - scan) // 2
    idat = png.index(b"IDAT") - 4
    grey16 = np.arange(HEIGHT * WIDTH, dtype=np.uint16).reshape(HEIGHT, WIDTH)
    bad_crc = chunk(b"tEXt", b"a\0b", checksum=b"\0\0\0\0")
    return {
        "plain.jpg": jpeg,
        "progressive.jpg": progressive,
        "exif.jpg": with_exif,
        "half-zeros.jpg": halved(jpeg, zeros=True),
        "hole.jpg": jpeg[:middle] + bytes(200) + jpeg[middle + 200 :],
        "bit-flipped.jpg": flipped(jpeg, middle, 0x10),
        "cut.jpg": jpeg[:middle],
        "without-eoi.jpg": jpeg[:-2],
        "cut-closed.jpg": jpeg[:middle] + b"\xff\xd9",
        "cut-closed-exif.jpg": halved(with_exif, fill=b"\xff\xd9"),
        "progressive-half-zeros.jpg": halved(progressive, zeros=True),
        "progressive-cut.jpg": halved(progressive),
        "progressive-cut-closed.jpg": halved(progressive, fill=b"\xff\xd9"),
        "cmyk.jpg": encoded(picture().convert("CMYK")),
        "cmyk-cut-closed.jpg": halved(encoded(picture().convert("CMYK")), fill=b"\xff\xd9"),
        "rgb-coded.jpg": encoded(keep_rgb=True),
        "grey.jpg": encoded(picture().convert("L")),
        "exif-6.jpg": encoded(exif=exif(6)),
        "exif-6-late.jpg": late_exif(exif(6)),
        "exif-9.jpg": encoded(exif=exif(9)),
        "xmp-6.jpg": jpeg[:2] + app1(XMP) + jpeg[2:],
        "xmp-6-with-exif.jpg": with_exif[:2] + app1(XMP) + with_exif[2:],
        "xmp-6-with-camera.jpg": (camera := encoded(exif=exif(None)))[:2] + app1(XMP) + camera[2:],
        "bytes-before.jpg": b"\r\n" + jpeg,
        "bytes-behind.jpg": jpeg + bytes(4096),
        "fill-bytes.jpg": jpeg[:2] + b"\xff\xff" + jpeg[2:],
        "header-only.jpg": b"\xff\xd8\xff\xd9",
        "multi-picture.jpg": encoded(kind="MPO", **second()),
        "one-pixel.jpg": encoded(Image.new("RGB", (1, 1), (9, 8, 7))),
        "empty.jpg": b"",
        "page.jpg": b"<html>404</html>",
        "plain.png": png,
        "bit-flipped.png": flipped(png, idat + 8 + (len(png) - idat) // 2, 1),
        "half-zeros.png": halved(png, zeros=True),
        "cut.png": halved(png),
        "without-iend.png": png[:-12],
        "bytes-behind.png": png + bytes(100),
        "long-text.png": with_text(zip_=True),
        "long-international-text.png": with_text(zip_=True, international=True),
        "long-profile.png": encoded(kind="PNG", icc_profile=bytes(2 << 20)),
        "bad-text-crc.png": png[:idat] + bad_crc + png[idat:],
        "bad-text.png": png[:idat] + chunk(b"zTXt", b"k\0\0notzlib") + png[idat:],
        "transparent.png": encoded(Image.new("RGBA", (4, 4), (255, 0, 0, 0)), "PNG"),
        "palette.png": encoded(picture().quantize(16), "PNG", transparency=0),
        "grey-alpha.png": encoded(Image.new("LA", (4, 4), (77, 10)), "PNG"),
        "grey-16.png": encoded(Image.fromarray(grey16 * 20), "PNG"),
        "grey-12-of-16.png": encoded(Image.fromarray(grey16), "PNG"),
        "one-bit.png": encoded(picture().convert("1"), "PNG"),
        "animated.png": encoded(kind="PNG", **second()),
        "exif-6.png": encoded(kind="PNG", exif=exif(6)),
        "too-large.png": encoded(Image.new("1", (14000, 13000)), "PNG"),
        "plain.webp": webp,
        "half-zeros.webp": halved(webp, zeros=True),
        "cut.webp": halved(webp),
        "animated.webp": encoded(kind="WEBP", lossless=True, **second()),
        "cut.gif": halved(encoded(picture().convert("P"), "GIF")),
        "plain.gif": encoded(picture().convert("P"), "GIF"),
        "cut.bmp": halved(encoded(kind="BMP")),
        "half-zeros.bmp": halved(encoded(kind="BMP"), zeros=True),
        "cut.tif": halved(encoded(kind="TIFF")),
        "cut-lzw.tif": halved(encoded(kind="TIFF", compression="tiff_lzw")),
        "pages.tif": encoded(kind="TIFF", **second()),
        "float.tif": encoded(Image.fromarray(grey16.astype(np.float32) / (HEIGHT * WIDTH)), "TIFF"),
        "lab.tif": encoded(picture().convert("LAB"), "TIFF"),
        "plain.ppm": encoded(kind="PPM"),
        "cut.ppm": halved(encoded(kind="PPM")),
        "plain.jp2": encoded(kind="JPEG2000"),
        "cut.jp2": halved(encoded(kind="JPEG2000")),
        "heic.jpg": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200),
    }


def write_files() -> None:
    """Write all files into one tar file."""
    with tarfile.open(FILES, "w:xz", preset=9) as tar:
        for name, content in files().items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def read_files() -> dict[str, bytes]:
    """Return all files by name, as they were written."""
    with tarfile.open(FILES) as tar:
        opened = {info.name: tar.extractfile(info) for info in tar.getmembers()}
        return {name: file.read() for name, file in opened.items() if file is not None}


def outcome(decode: Any, content: bytes) -> list[Any] | None:
    """Return height, width and sha256 of the pixels (H, W, 3); None if it is unreadable."""
    from logitcache.errors import UnreadableImage

    try:
        image_CHW = decode(content)
    except UnreadableImage:
        return None
    pixels = np.ascontiguousarray(image_CHW.permute(1, 2, 0).numpy())
    return [*pixels.shape[:2], hashlib.sha256(pixels.tobytes()).hexdigest()]


def main(command: str, *version: str) -> None:
    """Write the files, or what a table makes of them."""
    from logitcache.data.decode import decode

    if command == "files":
        write_files()
        return
    found = {name: outcome(decode, content) for name, content in read_files().items()}
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(o)}" for name, o in found.items())
    (HERE / f"table-{version[0]}.json").write_text(f"{{\n{lines}\n}}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
