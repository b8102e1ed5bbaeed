from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from logitcache.data.decode import decode
from logitcache.errors import UnreadableImage
from tests.conftest import jpeg, shape_image

IMAGE = shape_image(7, (17, 11))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chw(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def test_jpeg_pixels_are_pillows() -> None:
    content = jpeg(IMAGE)
    assert torch.equal(decode(content), chw(Image.open(io.BytesIO(content))))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1"])
def test_png_modes_become_what_pillow_converts(mode: str) -> None:
    image = IMAGE.convert(mode)
    assert torch.equal(decode(encoded(image, "PNG")), chw(image))


def test_cmyk_and_grey_jpegs() -> None:
    for mode in ("CMYK", "L"):
        content = jpeg(IMAGE.convert(mode))
        assert torch.equal(decode(content), chw(Image.open(io.BytesIO(content))))


def test_sixteen_bits_become_the_high_byte() -> None:
    values = np.arange(17 * 11, dtype=np.uint16).reshape(11, 17) * 257
    assert torch.equal(
        decode(encoded(Image.fromarray(values), "PNG"))[0],
        torch.from_numpy((values >> 8).astype(np.uint8)),
    )


def test_an_image_is_turned_as_its_exif_says() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    plain = decode(jpeg(IMAGE))
    turned = decode(jpeg(IMAGE, exif=exif))
    assert torch.equal(turned, torch.rot90(plain, -1, (1, 2)))


def test_the_extension_does_not_matter_and_animations_show_their_first_frame() -> None:
    frames = [shape_image(i, (8, 8)).convert("P") for i in range(3)]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert torch.equal(decode(content), chw(Image.open(io.BytesIO(content))))


@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 3)])
def test_pixels_are_taken_as_they_are(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    out = decode(pixels)
    assert out.shape == (3, 5, 6)
    expected = pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)
    assert (out.permute(1, 2, 0).numpy() == expected).all()


@pytest.mark.parametrize("cut", [0, 1, 3, 20, 0.5, 0.99])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_truncated_file_is_an_error(kind: str, cut: float) -> None:
    content = encoded(shape_image(3, (64, 64)), kind)
    length = int(cut * len(content)) if isinstance(cut, float) else cut
    with pytest.raises(UnreadableImage, match="cannot decode"):
        decode(content[:length])


def test_stray_bytes_in_a_jpeg_are_read_over() -> None:
    content = jpeg(IMAGE)
    stray = content[:2] + b"\xff\xfe\x00\x06abcd" + content[2:]
    assert torch.equal(decode(stray), decode(content))


def test_a_decompression_bomb_is_refused() -> None:
    bomb = bytearray(jpeg(IMAGE))
    start = bomb.index(b"\xff\xc0")
    bomb[start + 5 : start + 9] = b"\xff\xdc\xff\xdc"
    with pytest.raises(UnreadableImage, match="65500 x 65500"):
        decode(bytes(bomb))
