"""Shared by all tests: one torch thread, hypothesis profiles, small images, tiny networks."""

from __future__ import annotations

import io
import logging
import os
from typing import TYPE_CHECKING

import hypothesis
import numpy as np
import pytest
import torch
from PIL import Image

from logitcache.networks.build import NetworkConfig, build_network, input_spec
from logitcache.platforms import available_processors
from logitcache.training.export.export import export_network

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# of the processes that tests start: several tests share the processors
os.environ.setdefault("OMP_NUM_THREADS", "1")

hypothesis.settings.register_profile("fast", max_examples=25, deadline=None)
hypothesis.settings.register_profile("ci", max_examples=50, deadline=None, derandomize=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))

CLASSES = ("bird", "cat", "dog")


@pytest.hookimpl(optionalhook=True)  # without pytest-xdist too
def pytest_xdist_auto_num_workers() -> int:
    """Start one more process than there are processors: many tests wait for other processes."""
    return available_processors() + 1


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Test processes share the processors."""
    torch.set_num_threads(1)


def shape_image(seed: int, size: tuple[int, int] = (40, 32)) -> Image.Image:
    """Return a picture of noise over a gradient, the same for the same seed."""
    generator = np.random.default_rng(seed)
    width, height = size
    gradient = np.linspace(0, 200, width)[None, :, None] + np.zeros((height, 1, 3))
    noise = generator.integers(0, 56, (height, width, 3))
    return Image.fromarray((gradient + noise).astype(np.uint8))


def jpeg(image: Image.Image, **options: object) -> bytes:
    """Return the image as JPEG bytes."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90, **options)
    return buffer.getvalue()


def write_images(root: Path, per_class: int, classes: tuple[str, ...] = CLASSES) -> Path:
    """Write a folder per class with JPEG files."""
    for number, name in enumerate(classes):
        folder = root / name
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(per_class):
            content = jpeg(shape_image(1000 * number + index))
            (folder / f"{index:03d}.jpg").write_bytes(content)
    return root


def write_teacher(folder: Path, *, classes: int, seed: int = 0, model: str = "rednet") -> Path:
    """Write a tiny network with random weights as a timm folder; it takes images of 8 pixels."""
    torch.manual_seed(seed)
    kwargs = {
        "rednet": {"layers": [1], "width": 32, "kernel_size": 3},
        "cnn": {"channels": [16, 16, 16, 16], "stem_width": 16},
    }[model]
    name = {"rednet": "rednet26_small", "cnn": "resnet10t"}[model]
    network = build_network(NetworkConfig(model=name, kwargs=kwargs), classes)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    export_network(network, input_spec(network, 8), folder)
    return folder


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of 3 classes with 20 images each."""
    return write_images(tmp_path_factory.mktemp("images"), 20)


@pytest.fixture(scope="session")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """Return two teachers of 3 classes, as configurations have them."""
    root = tmp_path_factory.mktemp("teachers")
    cnn = write_teacher(root / "cnn", classes=3, model="cnn")
    red = write_teacher(root / "red", classes=3, seed=1)
    return {"cnn": {"model": f"local-dir:{cnn}"}, "red": {"model": f"local-dir:{red}"}}


@pytest.fixture(scope="session")
def s3_server() -> Iterator[tuple[str, int]]:
    """Start one S3 server for all tests of a process."""
    from moto.server import ThreadedMotoServer  # takes a second, and few tests need it

    logging.getLogger("werkzeug").setLevel("ERROR")
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    yield server.get_host_and_port()
    server.stop()
