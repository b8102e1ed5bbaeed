"""Packed images: their size, their orientation, and the bytes of stated libraries.

``python -m tests.data.test_packing`` adds the bytes of the libraries that are installed to
``tests/golden/packing.json``, if they differ from all that are listed.
"""

from __future__ import annotations

import base64
import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from logitcache.data.decode import decode
from logitcache.data.packing import ImagesConfig, PackingSource, pack, packing_of
from logitcache.data.readers import open_source
from logitcache.errors import UnreadableImage
from logitcache.views.golden import synthetic_image
from tests.conftest import jpeg, shape_image

GOLDEN = Path(__file__).parents[1] / "golden" / "packing.json"
EXAMPLES = ((20, 30, 64, 92), (70, 100, 64, 92), (100, 70, 32, 95), (65, 65, 65, 80))
"""Height and width of a synthetic image, side and quality."""
LIBRARIES = ("pillow", "simplejpeg")


def packed_example(height: int, width: int, side: int, quality: int) -> bytes:
    return pack(synthetic_image(height, width), ImagesConfig(side=side, quality=quality), 2)


def here() -> dict[str, Any]:
    """Return the libraries of this machine, and the bytes that they encode."""
    return {
        "versions": {name: version(name) for name in LIBRARIES},
        "examples": [
            {
                "height": height,
                "width": width,
                "side": side,
                "quality": quality,
                "jpeg": base64.b64encode(packed_example(height, width, side, quality)).decode(),
            }
            for height, width, side, quality in EXAMPLES
        ],
    }


def golden() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(GOLDEN.read_text())
    return found


@pytest.mark.requirement("V9.1", "V9.4")
def test_stated_libraries_encode_the_stated_bytes() -> None:
    own = here()
    listed = [entry for entry in golden() if entry["versions"] == own["versions"]]
    if not listed:
        pytest.skip(f"no bytes are listed for {own['versions']}")
    for example, stated in zip(own["examples"], listed[0]["examples"], strict=True):
        assert example.items() <= stated.items()


@pytest.mark.requirement("V9.4")
def test_stored_bytes_decode_to_the_stated_pixels() -> None:
    """Whatever libraries encoded them."""
    for entry in golden():
        for example in entry["examples"]:
            pixels = decode(base64.b64decode(example["jpeg"])).permute(1, 2, 0).contiguous()
            assert hashlib.sha256(pixels.numpy().tobytes()).hexdigest() == example["pixels"]


@pytest.mark.requirement("V9.1", "V9.2")
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    side=st.integers(16, 64),
    seed=st.integers(0, 99),
)
@settings(max_examples=40)
def test_the_shorter_side_is_bounded_and_the_shape_is_kept(
    height: int, width: int, side: int, seed: int
) -> None:
    pixels = np.array(shape_image(seed, (width, height)))
    packed = pack(pixels, ImagesConfig(side=side), 2)
    found = decode(packed).shape[1:]
    short = min(height, width)
    if short <= side:
        assert found == (height, width)
    else:
        assert min(found) == side
        assert max(found) == round(max(height, width) * side / short)
    assert packed == pack(pixels, ImagesConfig(side=side), 2), "the same bytes every time"


@pytest.mark.requirement("V9.1")
@pytest.mark.parametrize(("side", "subsampling"), [(64, "444"), (65, "420")])
def test_small_images_keep_the_resolution_of_color(side: int, subsampling: str) -> None:
    packed = pack(np.array(shape_image(1, (80, side))), ImagesConfig(side=256), 2)
    assert simplejpeg.decode_jpeg_header(packed)[3] == subsampling


@pytest.mark.requirement("V9.1")
def test_packed_images_are_upright_and_carry_no_metadata() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    exif[0x010E] = "where it was taken"
    original = jpeg(shape_image(3), exif=exif)
    packed = pack(original, ImagesConfig(), 2)
    assert b"where it was taken" in original
    assert b"where it was taken" not in packed
    assert b"Exif" not in packed
    assert decode(packed).shape == decode(original).shape == (3, 40, 32)


@pytest.mark.requirement("V9.2")
def test_packed_pixels_are_close_to_the_resized_ones() -> None:
    pixels = np.array(shape_image(5, (120, 90)))
    packed = decode(pack(pixels, ImagesConfig(side=45, quality=100), 2)).permute(1, 2, 0).numpy()
    exact = np.asarray(Image.fromarray(pixels).resize((60, 45), Image.Resampling.BICUBIC))
    assert np.abs(packed.astype(int) - exact.astype(int)).mean() < 1, "at the full color resolution"


def test_an_image_that_is_too_long_for_jpeg_is_refused() -> None:
    pixels = np.zeros((16, 70_000, 3), dtype=np.uint8)
    with pytest.raises(UnreadableImage, match="too long to be packed"):
        pack(pixels, ImagesConfig(side=16), 2)


def test_a_source_is_packed_when_it_is_read(images: Path) -> None:
    originals = open_source(str(images))
    source = PackingSource(originals, ImagesConfig(side=24), 2)
    assert packing_of(source) is source
    assert packing_of(originals) is None
    assert source.keys == originals.keys
    assert min(decode(source.read(3)).shape[1:]) == 24
    assert source.description.endswith("packed:24")


def main() -> None:
    """List the bytes of the libraries that are installed."""
    entries = golden() if GOLDEN.exists() else []
    own = here()
    for example in own["examples"]:
        pixels = decode(base64.b64decode(example["jpeg"])).permute(1, 2, 0).contiguous()
        example["pixels"] = hashlib.sha256(pixels.numpy().tobytes()).hexdigest()
    if all(entry["versions"] != own["versions"] for entry in entries):
        GOLDEN.write_text(json.dumps([*entries, own], indent=1) + "\n")


if __name__ == "__main__":
    main()
