"""A few images tell how large all are, and which are decoded in a way that is hardly meant."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from logitcache.data.decode import DECODING
from logitcache.data.readers import open_source
from logitcache.data.sample import sample_images
from logitcache.precompute.build import build_cache
from logitcache.precompute.config import PrecomputeConfig
from tests.conftest import jpeg, shape_image

if TYPE_CHECKING:
    from pathlib import Path

DARK = "16-bit gray that uses at most 12 bits: decoded as almost black"


def write_mixed(folder: Path, *, dark: int, usual: int) -> Path:
    """Write images of a microscope, 12 bits in 16, among usual ones, and one that is no image."""
    folder.mkdir()
    for number in range(dark):
        levels = np.random.default_rng(number).integers(0, 4096, (40, 50), dtype=np.uint16)
        encoded = io.BytesIO()
        Image.fromarray(levels).save(encoded, "PNG")
        (folder / f"{number}.png").write_bytes(encoded.getvalue())
    for number in range(usual):
        (folder / f"usual{number}.jpg").write_bytes(jpeg(shape_image(number)))
    (folder / "zz.jpg").write_bytes(b"none")
    return folder


@pytest.mark.requirement("V5.18")
def test_sizes_and_oddities_are_sampled(tmp_path: Path) -> None:
    images = write_mixed(tmp_path / "images", dark=3, usual=2)
    found = sample_images(open_source(str(images)), DECODING)
    assert (found.images, found.side) == (5, 40)
    assert found.oddities == {DARK: 3}
    assert found.notes == [f"3 of 5 sampled images: {DARK}"]


@pytest.mark.requirement("V5.18")
def test_oddities_are_counted_once_for_every_image_of_a_cache(
    tmp_path: Path, teachers: dict[str, dict[str, str]]
) -> None:
    images = write_mixed(tmp_path / "images", dark=5, usual=35)
    values = {
        "cache": str(tmp_path / "cache"),
        "data": str(images),
        "teachers": {"red": teachers["red"]},
        "views": {"count": 2, "cutmix_alpha": 1.0},
        "unit_rows": 16,
        "batch_size": 4,
        "on_bad_image": "skip",
    }
    summary = build_cache(PrecomputeConfig.parse(values, ""))
    assert f"5 of the images that were decoded: {DARK}" in summary.notes
    assert any("sampled images" in note for note in summary.notes)
    again = build_cache(PrecomputeConfig.parse(values, ""))
    assert not any("that were decoded" in note for note in again.notes)
