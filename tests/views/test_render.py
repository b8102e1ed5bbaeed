from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as v2
from torchvision.transforms.v2.functional import _geometry

from logitcache.data.readers import open_source
from logitcache.errors import UnreadableImage
from logitcache.views.geometry import crop_box, crop_center, flip
from logitcache.views.parameters import Box
from logitcache.views.render import BatchRequest, DecodedImages, ViewRenderer
from logitcache.views.spec import ViewsConfig

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from logitcache.views.spec import Interpolation

IMAGE = torch.randint(0, 256, (3, 61, 83), dtype=torch.uint8, generator=torch.manual_seed(0))
VIEW = ViewsConfig().random_view(1)


@pytest.mark.requirement("V7.1")
@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
def test_crops_are_those_of_torchvision(mode: Interpolation) -> None:
    for box in (Box(0, 0, 61, 83), Box(5, 7, 20, 30), Box(60, 82, 1, 1), Box(0, 3, 61, 9)):
        expected = v2.resized_crop(
            IMAGE,
            *(box.top, box.left, box.height, box.width),
            [32, 32],
            interpolation=InterpolationMode(mode),
            antialias=True,
        )
        levels = (crop_box(IMAGE, box, 32, mode).int() - expected.int()).abs()
        assert levels.max() <= (0 if native_uint8(mode) else 1)


def native_uint8(mode: Interpolation) -> bool:
    """Return whether torchvision resizes uint8 as it is here, as logitcache does everywhere.

    Without AVX2, and in its versions up to 0.21 with AVX-512 too, it goes through float32 for
    bilinear interpolation, and rounds otherwise.
    """
    rule: Any = _geometry._do_native_uint8_resize_on_cpu
    return bool(rule(InterpolationMode(mode)))


@pytest.mark.requirement("V4.26", "V7.1")
@pytest.mark.parametrize("fraction", [0.875, 0.9, 0.95, 1.0])
@pytest.mark.parametrize("size", [8, 15, 32, 100])
def test_central_crops_are_those_of_torchvision(fraction: float, size: int) -> None:
    for image in (IMAGE, IMAGE.transpose(1, 2), IMAGE[:, :50, :50]):
        resized = v2.resize(
            image,
            [math.floor(size / fraction)],
            interpolation=InterpolationMode.BICUBIC,
            antialias=True,
        )
        expected = v2.center_crop(resized, [size, size])
        assert torch.equal(crop_center(image, fraction, size, "bicubic"), expected)


@pytest.mark.requirement("V4.10")
def test_a_flip_mirrors() -> None:
    assert torch.equal(flip(flip(IMAGE)), IMAGE)
    assert torch.equal(flip(IMAGE)[..., 0], IMAGE[..., -1])


def requests(
    hashes: NDArray[np.uint64], batch: int, order: NDArray[np.int64]
) -> list[BatchRequest]:
    return [
        BatchRequest(VIEW, order[i : i + batch], hashes[order[i : i + batch]])
        for i in range(0, len(order), batch)
    ]


@pytest.mark.requirement("V1.1")
@pytest.mark.parametrize(("threads", "batch"), [(1, 60), (2, 7), (4, 32)])
def test_pixels_do_not_depend_on_threads_batches_or_order(
    images: Path, threads: int, batch: int
) -> None:
    source = open_source(str(images))
    hashes = np.arange(60, dtype=np.uint64) * np.uint64(2**57 + 1)
    straight = np.arange(60)
    with ViewRenderer(source.read, [16], threads=1) as renderer:
        (expected,) = renderer.batches(requests(hashes, 60, straight))
    order = np.random.default_rng(threads).permutation(60)
    with ViewRenderer(source.read, [16, 24], threads=threads) as renderer:
        got = list(renderer.batches(requests(hashes, batch, order)))
    pixels = np.concatenate([rendered.pixels[16] for rendered in got])
    assert (pixels == expected.pixels[16][order]).all()
    assert np.concatenate([r.pixels[24] for r in got]).shape == (60, 3, 24, 24)


@pytest.mark.requirement("F3.11")
def test_an_unreadable_image_stays_black_and_is_reported() -> None:
    def read(index: int) -> bytes | NDArray[np.uint8]:
        return b"junk" if index == 2 else np.full((8, 8), 200, dtype=np.uint8)

    request = BatchRequest(VIEW, np.array([0, 2, -1, 1]), np.zeros(4, dtype=np.uint64))
    with ViewRenderer(read, [8], threads=2) as renderer:
        (rendered,) = renderer.batches([request])
    assert list(rendered.failures) == [1]
    assert isinstance(rendered.failures[1], UnreadableImage)
    assert rendered.pixels[8].max(axis=(1, 2, 3)).tolist() == [200, 0, 0, 200]


def test_what_reading_raises_is_raised_at_its_batch() -> None:
    def read(index: int) -> NDArray[np.uint8]:
        if index == 5:
            raise OSError("disk gone")
        return np.zeros((8, 8), dtype=np.uint8)

    hashes = np.zeros(10, dtype=np.uint64)
    with ViewRenderer(read, [8], threads=2) as renderer:
        batches = renderer.batches(requests(hashes, 2, np.arange(10)))
        next(batches)
        next(batches)
        with pytest.raises(OSError, match="disk gone"):
            next(batches)


def test_rendering_works_inside_inference_mode() -> None:
    request = BatchRequest(VIEW, np.array([0]), np.zeros(1, dtype=np.uint64))
    with (
        torch.inference_mode(),
        ViewRenderer(lambda _: np.zeros((8, 8), dtype=np.uint8), [8], threads=1) as renderer,
    ):
        assert len(list(renderer.batches([request]))) == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"scale": [1.0, 1.0], "hflip": 0.0},
        {"color_jitter": 0.4, "vflip": 0.5},
        {"auto_augment": "rand-m9-n3", "re_prob": 1.0, "re_mode": "pixel", "re_size": 16},
        {"re_prob": 1.0, "derive": ["rot90(1)", "mask(0.5)", "lowres(2)"]},
        {"mixup_alpha": 0.8},
        {"cutmix_alpha": 1.0},
    ],
    ids=str,
)
def test_images_that_are_kept_are_not_written_to(settings: dict[str, Any]) -> None:
    """All views of the same arrays, of the size of a view and of another one."""
    generator = np.random.default_rng(0)
    stored = [generator.integers(0, 256, (16, side, 3), dtype=np.uint8) for side in (16, 16, 24)]
    before = [image.copy() for image in stored]
    hashes = np.arange(3, dtype=np.uint64) * np.uint64(2**57 + 1)
    partners = np.array([1, 0, 2])
    requests = [
        BatchRequest(view, np.arange(3), hashes, partners=partners, partner_hashes=hashes[partners])
        for view in ViewsConfig.parse({"count": 2, "eval": True, **settings}, "").views()
    ]
    with ViewRenderer(stored.__getitem__, [16], threads=2, image_memory=2**20) as renderer:
        once = [batch.pixels[16] for batch in renderer.batches(requests)]
        again = [batch.pixels[16] for batch in renderer.batches(requests)]
    np.testing.assert_array_equal(once, again)
    for image, copy in zip(stored, before, strict=True):
        np.testing.assert_array_equal(image, copy)


def test_decoded_images_are_kept_up_to_a_number_of_bytes() -> None:
    decoded: list[int] = []

    def decode(index: int) -> torch.Tensor:
        decoded.append(index)
        return torch.zeros(3, 10, 10, dtype=torch.uint8)

    images = DecodedImages(decode, most_bytes=750)
    for index in (0, 1, 2, 0, 1, 2):
        images(index)
    assert decoded == [0, 1, 2, 2], "a third image does not fit"
    images.forget()
    images(2)
    images(2)
    assert decoded == [0, 1, 2, 2, 2]
