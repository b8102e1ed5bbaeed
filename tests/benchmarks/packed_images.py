"""Student input from images in a cache, against the original files: rates and bytes.

::

    python -m tests.benchmarks.packed_images [--cifar DIR] [--images 2000] [--rounds 5]

The originals are JPEG files of 500 x 375 pixels at quality 90: random crops of scikit-learn's two
photographs, and, with ``--cifar``, as many images of that folder, enlarged. Two caches are computed
by the same tiny teacher, one with ``--images packed:256``. Both loaders run in every round, in
alternating order, with the same views (crop and flip, 224 pixels, 2 threads), and only ratios
within a round count; so do renderers alone, which read, decode and render to uint8. Loaders also
read targets and convert the images to normalized float32, which takes as long for both. Processor
time per image hardly depends on other work on the machine.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from logitcache.cache.read.reader import open_cache
from logitcache.data.lookup import key_hash
from logitcache.precompute.build import build_cache
from logitcache.precompute.config import PrecomputeConfig
from logitcache.targets.images.image_source import images_of
from logitcache.targets.loader import loader
from logitcache.views.render import BatchRequest, ViewRenderer
from logitcache.views.spec import parse_view
from tests.benchmarks.measuring import Measurement
from tests.conftest import write_teacher

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

IMAGES, ROUNDS, BATCH, SIZE, THREADS, BOUND = 2000, 5, 64, 224, 2, 1.5
WIDTH, HEIGHT = 500, 375


def write_originals(folder: Path, count: int, cifar: Sequence[Path] = ()) -> None:
    """Write JPEG files in two class folders.

    Args:
        folder: Where.
        count: How many.
        cifar: Small image files, enlarged for every second one; none for photographs alone.
    """
    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    for index in range(count):
        generator = np.random.default_rng(index)
        if cifar and index % 2:
            image = Image.open(cifar[index % len(cifar)]).convert("RGB")
        else:
            image = photographs[int(generator.integers(len(photographs)))]
            share = generator.uniform(0.5, 1)
            width = int(share * min(image.width, image.height * WIDTH / HEIGHT))
            height = width * HEIGHT // WIDTH
            left = int(generator.integers(image.width - width + 1))
            top = int(generator.integers(image.height - height + 1))
            image = image.crop((left, top, left + width, top + height))
        path = folder / f"class-{index % 2}" / f"{index:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        resized = image.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        resized.save(path, "JPEG", quality=90)


def build(cache: Path, data: Path, teacher: Path, images: str | None) -> None:
    """Compute a cache of two views."""
    values = {
        "cache": str(cache),
        "data": str(data),
        "teachers": {"cnn": {"model": f"local-dir:{teacher}"}},
        "views": {"count": 2},
        "min_accuracy": 0,
        "images": images,
    }
    build_cache(PrecomputeConfig.parse(values, ""))


def epoch(cache: Path, data: Path | None) -> tuple[float, float]:
    """Return seconds and processor seconds per image of an epoch, its first batch left out."""
    images = 0
    with loader(
        open_cache(cache),
        None if data is None else str(data),
        batch_size=BATCH,
        size=SIZE,
        threads=THREADS,
    ) as batches:
        walk = batches.epoch(0)
        next(walk)
        started, used = time.perf_counter(), _processor_seconds()
        for shown, _ in walk:
            images += len(shown)
        return (time.perf_counter() - started) / images, (_processor_seconds() - used) / images


def rendering(cache: Path, data: Path | None) -> tuple[float, float]:
    """Return seconds and processor seconds per image to read, decode and render the first view."""
    opened = open_cache(cache)
    source = images_of(opened, None if data is None else str(data))
    view = parse_view(next(iter(opened.views.values())), "")
    hashes = np.array([key_hash(key) for key in source.keys], dtype=np.uint64)
    order = np.random.default_rng(0).permutation(len(hashes))
    parts = np.array_split(order, -(-len(order) // BATCH))
    with ViewRenderer(source.read, [SIZE], threads=THREADS) as renderer:
        started, used = time.perf_counter(), _processor_seconds()
        for _ in renderer.batches(BatchRequest(view, part, hashes[part]) for part in parts):
            pass
        seconds, spent = time.perf_counter() - started, _processor_seconds() - used
    return seconds / len(order), spent / len(order)


def _processor_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def compare(folder: Path, count: int, rounds: int, cifar: Sequence[Path]) -> list[Measurement]:
    """Return rates and bytes of originals and of packed images."""
    originals, plain, packed = (folder / name for name in ("originals", "plain", "packed"))
    write_originals(originals, count, cifar)
    teacher = write_teacher(folder / "cnn", classes=2, model="cnn")
    build(plain, originals, teacher, None)
    build(packed, originals, teacher, "packed:256")
    sources: dict[str, tuple[Path, Path | None]] = {
        "originals": (plain, originals),
        "packed": (packed, None),
    }
    rows: list[Measurement] = []
    for what, walk in {"read, decode, render": rendering, "loader": epoch}.items():
        rows += _compared(what, walk, sources, rounds)
    sizes = [path.stat().st_size for path in originals.rglob("*.jpg")]
    stored = [path.stat().st_size for path in packed.glob("images/**/c/**/*") if path.is_file()]
    rows.append(Measurement("originals: bytes per image", sum(sizes) / count, "B"))
    rows.append(Measurement("packed: bytes per image, all arrays", sum(stored) / count, "B"))
    return rows


def _compared(
    what: str,
    walk: Callable[[Path, Path | None], tuple[float, float]],
    sources: Mapping[str, tuple[Path, Path | None]],
    rounds: int,
) -> list[Measurement]:
    """Return the ratios of packed images to originals, and the medians of both."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in sources}
    for number in range(rounds):
        for name in sorted(sources, reverse=bool(number % 2)):
            found[name].append(walk(*sources[name]))
    pairs = list(zip(found["originals"], found["packed"], strict=True))
    rows = [
        _ratio(f"{what}: packed to originals", [a[0] / b[0] for a, b in pairs]),
        _ratio(f"{what}: the same, processor time", [a[1] / b[1] for a, b in pairs]),
    ]
    for name, walks in found.items():
        rate = statistics.median(1 / seconds for seconds, _ in walks)
        cost = statistics.median(1e3 * used for _, used in walks)
        note = f"{cost:.2f} core ms"
        rows.append(Measurement(f"{what}: {name}, images per second", rate, "", note=note))
    return rows


def _ratio(name: str, ratios: list[float]) -> Measurement:
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return Measurement(name, middle, "x", low, high, target=BOUND, at_most=False)


def measure() -> list[Measurement]:
    """Return the rows of the table of all benchmarks: photographs alone, fewer of them."""
    with tempfile.TemporaryDirectory() as folder:
        return compare(Path(folder), 512, 3, ())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cifar", type=Path, help="folder of small image files")
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    cifar = sorted(arguments.cifar.rglob("*.jpg"))[: arguments.images] if arguments.cifar else []
    with tempfile.TemporaryDirectory() as folder:
        for row in compare(Path(folder), arguments.images, arguments.rounds, cifar):
            print(row)


if __name__ == "__main__":
    main()
