from __future__ import annotations

import contextlib
import io
import warnings
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from logitcache.data.decode import decode
from logitcache.errors import UnreadableImage
from tests.conftest import jpeg, shape_image
from tests.golden.odd_images import chunk

IMAGE = shape_image(7, (17, 11))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chw(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


@pytest.mark.requirement("V5.2")
def test_jpeg_pixels_are_pillows() -> None:
    content = jpeg(IMAGE)
    assert torch.equal(decode(content), chw(Image.open(io.BytesIO(content))))


@pytest.mark.requirement("V5.3", "V5.5", "V5.6", "V5.7")
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1"])
def test_png_modes_become_what_pillow_converts(mode: str) -> None:
    image = IMAGE.convert(mode)
    assert torch.equal(decode(encoded(image, "PNG")), chw(image))


@pytest.mark.requirement("V5.2", "V5.5", "V5.8")
def test_cmyk_and_grey_jpegs() -> None:
    for mode in ("CMYK", "L"):
        content = jpeg(IMAGE.convert(mode))
        assert torch.equal(decode(content), chw(Image.open(io.BytesIO(content))))


@pytest.mark.requirement("V5.9")
def test_sixteen_bits_become_the_high_byte() -> None:
    values = np.arange(17 * 11, dtype=np.uint16).reshape(11, 17) * 257
    assert torch.equal(
        decode(encoded(Image.fromarray(values), "PNG"))[0],
        torch.from_numpy((values >> 8).astype(np.uint8)),
    )


@pytest.mark.requirement("V5.4")
def test_an_image_is_turned_as_its_exif_says() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    plain = decode(jpeg(IMAGE))
    turned = decode(jpeg(IMAGE, exif=exif))
    assert torch.equal(turned, torch.rot90(plain, -1, (1, 2)))


@pytest.mark.requirement("V5.3", "V5.12")
def test_the_extension_does_not_matter_and_animations_show_their_first_frame() -> None:
    frames = [shape_image(i, (8, 8)).convert("P") for i in range(3)]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert torch.equal(decode(content), chw(Image.open(io.BytesIO(content))))


@pytest.mark.requirement("V5.17")
@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 3)])
def test_pixels_are_taken_as_they_are(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    out = decode(pixels)
    assert out.shape == (3, 5, 6)
    expected = pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)
    assert (out.permute(1, 2, 0).numpy() == expected).all()


@pytest.mark.requirement("V5.13")
@pytest.mark.parametrize("cut", [0, 1, 3, 20, 0.5, 0.99])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_truncated_file_is_an_error(kind: str, cut: float) -> None:
    content = encoded(shape_image(3, (64, 64)), kind)
    length = int(cut * len(content)) if isinstance(cut, float) else cut
    with pytest.raises(UnreadableImage, match="cannot be decoded"):
        decode(content[:length])


def test_stray_bytes_in_a_jpeg_are_read_over() -> None:
    content = jpeg(IMAGE)
    stray = content[:2] + b"\xff\xfe\x00\x06abcd" + content[2:]
    assert torch.equal(decode(stray), decode(content))


@pytest.mark.requirement("V5.16")
def test_a_decompression_bomb_is_refused() -> None:
    bomb = bytearray(jpeg(IMAGE))
    start = bomb.index(b"\xff\xc0")
    bomb[start + 5 : start + 9] = b"\xff\xdc\xff\xdc"
    with pytest.raises(UnreadableImage, match="65500 x 65500"):
        decode(bytes(bomb))


@pytest.mark.requirement("V5.4")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_upright_as_pillow_does(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(IMAGE, kind, exif=exif)
    assert torch.equal(
        decode(content), chw(ImageOps.exif_transpose(Image.open(io.BytesIO(content))))
    )


@pytest.mark.requirement("V5.4")
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_turns_nothing() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    content = jpeg(IMAGE, exif=exif)
    start = content.index(b"Exif\0\0") + 6
    for damage in (b"XX\0\x2a", b"MM\0\x2a\xff\xff\xff\xff"):
        broken = content[:start] + damage + content[start + len(damage) :]
        assert torch.equal(decode(broken), decode(jpeg(IMAGE)))


@pytest.mark.requirement("V5.6", "V5.7")
def test_transparent_palettes_keep_their_colors_without_a_warning() -> None:
    image = IMAGE.quantize(16)
    content = encoded(image, "PNG", transparency=bytes(range(0, 256, 16)))
    assert torch.equal(decode(content), chw(image))


@pytest.mark.requirement("V5.9")
def test_sixteen_bit_tiff_and_thirty_two_bit_integers() -> None:
    values = np.array([[0, 255, 256, 65535]], dtype=np.uint16)
    expected = torch.tensor([[0, 0, 1, 255]], dtype=torch.uint8)
    assert torch.equal(decode(encoded(Image.fromarray(values), "TIFF"))[0], expected)
    wide = np.array([[-5, 255, 256, 2**20]], dtype=np.int32)
    assert torch.equal(decode(encoded(Image.fromarray(wide), "TIFF"))[0], expected)


@pytest.mark.requirement("V5.12")
def test_animated_webp_shows_its_first_frame() -> None:
    frames = [shape_image(i, (8, 8)) for i in range(3)]
    content = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert torch.equal(decode(content), chw(frames[0]))


@pytest.mark.requirement("V5.3")
def test_formats_that_run_other_programs_are_refused() -> None:
    with pytest.raises(UnreadableImage, match="none of JPEG"):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")


def test_a_png_with_a_damaged_name_of_its_header_is_unreadable() -> None:
    content = bytearray(encoded(shape_image(1, (24, 24)), "PNG"))
    content[12:16] = b"IHDx"
    content[content.index(b"IDAT") + 8] ^= 1
    with pytest.raises(UnreadableImage):
        decode(bytes(content))


@settings(max_examples=40)
@given(data=st.data())
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
def test_damaged_bytes_become_pixels_or_the_one_error(kind: str, data: st.DataObject) -> None:
    content = bytearray(encoded(shape_image(1, (24, 24)), kind))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(4, len(content) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(UnreadableImage), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert decode(bytes(content)).shape[0] == 3


@pytest.mark.requirement("V5.10")
def test_sixteen_bit_colors_become_the_high_byte() -> None:
    """Pillow writes no such file."""
    values = np.random.default_rng(0).integers(0, 2**16, (5, 7, 3), dtype=np.uint16)
    header = (7).to_bytes(4, "big") + (5).to_bytes(4, "big") + bytes([16, 2, 0, 0, 0])
    raw = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(raw)), chunk(b"IEND", b""))
    found = decode(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    assert (found.permute(1, 2, 0).numpy() == values >> 8).all()


@pytest.mark.requirement("V5.11")
def test_floating_point_is_clipped_to_levels() -> None:
    values = np.array([[-3.0, 0.0, 12.0, 254.0, 255.0, 1e9]], dtype=np.float32)
    (found, *others) = decode(encoded(Image.fromarray(values), "TIFF")).tolist()
    assert found == [[0, 0, 12, 254, 255, 255]]
    assert others == [found, found]
