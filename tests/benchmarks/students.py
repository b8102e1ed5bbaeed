"""What a student's step and epoch cost with cached targets, without any, and with live teachers.

Steps: a ViT-Ti at 64 pixels, 32 images, C = 1000, K = 50; the cached side also gathers and decodes
its batch of targets. Both sides see the same images, already normalized, and step the optimizer.

Epochs: the same student over photographs of noise, rendered as always. Live teachers are run in
every step by ``timm.task.LogitDistillationTask``, a ResNet-18 and a RedNet-26 at the same size,
answering with the mean of their logits; from the cache the student learns from both, one by one.
What the cache took to make is in the note: an epoch's views are made once, and walked as often as
students need them.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import timm
import torch
from timm.models import save_for_hf
from timm.task import LogitDistillationTask
from torch import nn

from logitcache.batch import TargetBatch
from logitcache.cache.read.reader import open_cache
from logitcache.data.readers import DataConfig, open_source
from logitcache.objectives.label import Label
from logitcache.objectives.soft import Soft
from logitcache.precompute.build import build_cache
from logitcache.precompute.config import PrecomputeConfig
from logitcache.targets.loader import Loader, loader
from logitcache.targets.settings import LoaderSettings
from logitcache.views.spec import ViewsConfig
from tests.benchmarks.logits import CLASSES
from tests.benchmarks.measuring import Measurement, ratio_of_times
from tests.benchmarks.reading import gather, make_cache, repeated, whole
from tests.benchmarks.view_rates import photographs
from tests.cache.building import samples_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

SIZE, BATCH, ROWS = 64, 32, 16_384
IMAGES, FOLDERS, TOP_K, LIVE_BATCH = 192, 96, 50, 32
TEACHERS = {"cnn": "resnet18", "involution": "rednet26"}


def student(classes: int) -> nn.Module:
    torch.manual_seed(0)
    network: nn.Module = timm.create_model(
        "vit_tiny_patch16_224", img_size=SIZE, num_classes=classes
    )
    return network.train()


class Step:
    """A student, its optimizer, and one step of both."""

    def __init__(self, classes: int) -> None:
        self.network = student(classes)
        self._optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-4)

    def __call__(self, loss: Tensor) -> None:
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()


def steps() -> Measurement:
    """Return a step with cached sparse targets over one with labels only."""
    step, rng = Step(CLASSES), np.random.default_rng(0)
    images = torch.randn(BATCH, 3, SIZE, SIZE)
    soft, label = Soft(), Label()
    with tempfile.TemporaryDirectory() as folder:
        make_cache(Path(folder) / "c", repeated(ROWS), samples_of(ROWS, unit=ROWS))
        window = whole(open_cache(Path(folder) / "c"))

    def labeled() -> TargetBatch:
        rows = torch.from_numpy(rng.integers(ROWS, size=BATCH))
        return TargetBatch(rows, torch.randint(CLASSES, (BATCH,)), {})

    def with_labels() -> None:
        step(label(step.network(images), labeled()))

    def from_cache() -> None:
        batch = labeled()
        answers = gather(window, batch.rows.numpy())
        step(soft(step.network(images), TargetBatch(batch.rows, batch.labels, {"t": answers})))

    name = "student step with cached sparse targets, against labels only"
    return ratio_of_times(name, from_cache, with_labels, rounds=21, target=1.03)


class Mean(nn.Module):
    """Several teachers as one: the mean of their logits."""

    def __init__(self, members: list[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([member(images) for member in self.members]).mean(0)


def write_images(folder: Path) -> None:
    for index, content in enumerate(photographs(IMAGES)):
        file = folder / f"{index % FOLDERS:03d}" / f"{index}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)


def write_teachers(folder: Path) -> dict[str, nn.Module]:
    """Make the teachers and save them as folders that timm loads."""
    networks = {}
    for name, model in TEACHERS.items():
        torch.manual_seed(1)
        networks[name] = timm.create_model(model, num_classes=FOLDERS).eval()
        save_for_hf(networks[name], str(folder / name), safe_serialization=True)
    return networks


def precompute(folder: Path) -> float:
    """Fill the cache; return the seconds it took."""
    start = time.perf_counter()
    config = PrecomputeConfig.parse(
        {
            "cache": str(folder / "cache"),
            "data": {"name": str(folder / "images")},
            "teachers": {
                name: {"model": f"local-dir:{folder / name}", "size": SIZE} for name in TEACHERS
            },
            "views": {"count": 1},
            "encoding": {"top_k": TOP_K},
            "min_accuracy": 0.0,
        },
        "benchmark",
    )
    build_cache(config)
    return time.perf_counter() - start


def epochs() -> Measurement:
    """Return how many times faster an epoch from the cache is than one with live teachers."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder / "images")
        networks = write_teachers(folder)
        seconds = precompute(folder)
        source = open_source(DataConfig(name=str(folder / "images")))
        cache = open_cache(folder / "cache")
        step, soft = Step(FOLDERS), Soft()
        task = LogitDistillationTask(
            step.network, Mean(list(networks.values())), nn.CrossEntropyLoss(), verbose=False
        ).train()
        with loader(cache, source, batch_size=LIVE_BATCH, size=SIZE) as cached:
            settings = LoaderSettings(LIVE_BATCH, SIZE)
            with Loader(cached.rows, settings, views=ViewsConfig()) as plain:

                def from_cache() -> None:
                    for images, targets in cached.epoch(0):
                        step(soft(step.network(images), targets))

                def live() -> None:
                    for images, targets in plain.epoch(0):
                        step(task(images, targets.labels)["loss"])

                what = "student epoch from the cache: times faster than with two live teachers"
                row = ratio_of_times(what, from_cache, live, rounds=5, inverse=True)
    note = f"{row.note}; making the cache took {1e3 * seconds:.0f} ms"
    return Measurement(**{**vars(row), "note": note})


def measure() -> list[Measurement]:
    """Return the price of a step, and the speed-up of an epoch."""
    parts: list[Callable[[], Measurement]] = [steps, epochs]
    return [part() for part in parts]
