from __future__ import annotations

import time
import tracemalloc
from typing import TYPE_CHECKING

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from torch.nn import functional

from logitcache.errors import UnreadableImage
from logitcache.views import geometry
from logitcache.views.geometry import crop_center
from logitcache.views.render import BatchRequest, ViewRenderer
from logitcache.views.resample import resized_window
from logitcache.views.spec import ViewsConfig

if TYPE_CHECKING:
    from logitcache.views.spec import Interpolation

INTERPOLATIONS: list[Interpolation] = ["bilinear", "bicubic"]


def picture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    levels = np.random.default_rng(seed).integers(0, 256, (3, height, width), dtype=np.uint8)
    return torch.from_numpy(levels)


@pytest.mark.requirement("V7.4")
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@given(
    st.integers(1, 90),
    st.integers(1, 400),
    st.integers(8, 120),
    st.integers(8, 700),
    st.floats(0, 1),
    st.integers(0, 99),
)
def test_a_window_is_what_torch_has_there(
    interpolation: Interpolation,
    height: int,
    width: int,
    new_height: int,
    new_width: int,
    place: float,
    seed: int,
) -> None:
    image, size = picture(height, width, seed), 8
    whole = functional.interpolate(
        image[None], size=(new_height, new_width), mode=interpolation, antialias=True
    )[0]
    top, left = int(place * (new_height - size)), int(place * (new_width - size))
    found = resized_window(image, (new_height, new_width), (top, left), (size, size), interpolation)
    assert torch.equal(found, whole[:, top : top + size, left : left + size])


@pytest.mark.requirement("V7.4")
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize(
    ("height", "width"), [(1, 900), (900, 1), (2, 1500), (3, 700), (700, 3), (1, 3), (64, 64)]
)
def test_crops_of_long_images_are_those_of_the_whole_resized_image(
    height: int, width: int, interpolation: Interpolation, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = picture(height, width)
    monkeypatch.setattr(geometry, "_MOST_PIXELS", 1 << 60)
    expected = crop_center(image, 0.875, 56, interpolation)
    monkeypatch.setattr(geometry, "_MOST_PIXELS", 0)
    assert torch.equal(crop_center(image, 0.875, 56, interpolation), expected)


@pytest.mark.requirement("V6.1", "V7.4")
@pytest.mark.parametrize("shape", [(1, 20000), (20000, 1), (2, 60000), (65500, 3)])
def test_extreme_images_take_neither_memory_nor_minutes(shape: tuple[int, int]) -> None:
    image = picture(*shape)
    started = time.monotonic()
    tracemalloc.start()
    try:
        assert crop_center(image, 0.875, 224, "bicubic").shape == (3, 224, 224)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 150e6, "8.4 GiB for the smallest of them, before"
    assert time.monotonic() - started < 60, "37 s for the smallest of them, before"


@pytest.mark.requirement("V7.5")
def test_what_is_too_long_is_refused_by_name() -> None:
    pixels = np.zeros((1, 300_000, 3), dtype=np.uint8)
    view = ViewsConfig.model_validate({"count": 0, "eval": True}).eval_view()
    request = BatchRequest(view, np.array([7]), np.array([5], np.uint64))
    with ViewRenderer(lambda _: pixels, [224], threads=1) as renderer:
        (batch,) = renderer.batches([request])
    error = batch.failures[0]
    assert isinstance(error, UnreadableImage)
    assert error.where == 7
    assert "300000 x 1" in str(error)
    assert "crop_mode" in str(error)


@pytest.mark.parametrize("mode", INTERPOLATIONS)
def test_whole_images_are_resized_to_a_width_of_one_as_windows_are(mode: Interpolation) -> None:
    """Whatever kernels torch has: without AVX2 it is wrong for images in another order."""
    for height, width in ((3, 4), (9, 10), (5, 1), (36, 40)):
        # in the order that decoders write
        image = picture(height, width).permute(1, 2, 0).contiguous().permute(2, 0, 1)
        expected = resized_window(image, (4, 1), (0, 0), (4, 1), mode)
        assert torch.equal(geometry._resize(image, 4, 1, mode), expected)
