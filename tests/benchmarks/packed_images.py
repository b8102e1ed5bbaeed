"""Student input from images or views in a cache, against original files and timm: rates and bytes.

::

    python -m tests.benchmarks.packed_images [--cifar DIR] [--images 2000] [--rounds 5]

The originals are JPEG files of 500 x 375 pixels at quality 90: random crops of scikit-learn's two
photographs, and, with ``--cifar``, as many images of that folder, enlarged. With ``--cifar``, the
small images of that folder are measured as they are, too, in views of 32 pixels.

Three caches are computed by the same tiny teacher: without images, with ``--images packed``, and
with ``--images views``. All sides run in every round, in alternating order, and only ratios within
a round count. *Rendering* reads, decodes and renders to uint8: by our renderer with 2 threads, and
by timm's transform in a DataLoader with 2 worker processes. *Input* gives normalized float32: our
loader, with targets, and timm's transform with normalization. Processor time per image hardly
depends on other work on the machine.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images
from torch.utils.data import DataLoader

from logitcache.cache.read.reader import open_cache
from logitcache.precompute.build import build_cache
from logitcache.precompute.config import PrecomputeConfig
from logitcache.targets.images.image_rows import CheckedReader, match_rows
from logitcache.targets.images.image_source import images_of
from logitcache.targets.loader import loader
from logitcache.views.render import BatchRequest, ViewRenderer
from logitcache.views.spec import parse_view
from tests.benchmarks.measuring import Measurement
from tests.benchmarks.view_rates import POLICIES, TimmDataset, core_seconds
from tests.conftest import write_teacher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    Walk = Callable[[], tuple[float, float]]

IMAGES, ROUNDS, BATCH, THREADS = 2000, 5, 64, 2
SIZE, SMALL = 224, 32
WIDTH, HEIGHT = 500, 375
BOUNDS = {
    ("rendering", "crop + flip", "packed", "originals"): 1.5,
    ("rendering", "crop + flip", "views", "timm"): 4.0,
    ("rendering", "crop + flip + RandAugment", "views", "timm"): 8.0,
}
"""Least ratios of rates: the first side over the second one."""
PAIRS = (("packed", "originals"), ("packed", "timm"), ("views", "originals"), ("views", "timm"))


class Files(Sequence[bytes]):
    """Contents of files, read when they are asked for."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: Any) -> Any:
        return self._paths[index].read_bytes()


@dataclass(frozen=True)
class Sides:
    """What is compared: original files, and caches of them by form of the images.

    Attributes:
        originals: Folder of the originals.
        caches: Caches by form: ``originals`` has no images.
        size: Side of the views in pixels.
        policy: timm's augmentation options besides crop and flip.
    """

    originals: Path
    caches: Mapping[str, Path]
    size: int
    policy: dict[str, Any]

    def walks(self, what: str) -> dict[str, Walk]:
        """Return what is timed, by side."""
        ours = {"rendering": self._rendering, "input": self._input}[what]
        found: dict[str, Walk] = {form: partial(ours, form) for form in self.caches}
        found["timm"] = partial(self._timm, normalize=what == "input")
        return found

    def bytes_per_image(self, count: int) -> dict[str, float]:
        """Return the bytes per image of files, and of all arrays of images in the caches."""
        files = sum(path.stat().st_size for path in self.originals.rglob("*.jpg"))
        views = len(open_cache(self.caches["views"]).views)
        packed = _array_bytes(self.caches["packed"] / "images")
        squares = _array_bytes(self.caches["views"] / "squares") / views
        return {
            "originals": files / count,
            "packed": packed / count,
            "views, for each view": squares / count,
        }

    def _data(self, form: str) -> str | None:
        return str(self.originals) if form == "originals" else None

    def _rendering(self, form: str) -> tuple[float, float]:
        """Read, decode and render the first view, in a random order of images."""
        cache = open_cache(self.caches[form])
        rows = match_rows(cache, images_of(cache, self._data(form)))
        view = parse_view(next(iter(cache.views.values())), "")
        order = np.random.default_rng(0).permutation(len(rows))
        parts = np.array_split(order, -(-len(order) // BATCH))
        requests = (
            rows.shown(BatchRequest(view, part, rows.hashes_of(part), sizes=(self.size,)))
            for part in parts
        )
        with ViewRenderer(CheckedReader(rows), [self.size], threads=THREADS) as renderer:
            return _timed(renderer.batches(requests), lambda batch: len(batch.request.indices))

    def _input(self, form: str) -> tuple[float, float]:
        """Walk an epoch of our loader."""
        cache, size = open_cache(self.caches[form]), self.size
        with loader(
            cache, self._data(form), batch_size=BATCH, size=size, threads=THREADS
        ) as batches:
            return _timed(batches.epoch(0), lambda batch: len(batch[0]))

    def _timm(self, *, normalize: bool) -> tuple[float, float]:
        """Walk an epoch of timm's transform in worker processes."""
        files = Files(sorted(self.originals.rglob("*.jpg")))
        options = {"input_size": self.size, "normalize": normalize, **self.policy}
        batches: Any = DataLoader(
            TimmDataset(files, options),
            batch_size=BATCH,
            shuffle=True,
            num_workers=THREADS,
            multiprocessing_context="fork",
        )
        return _timed(iter(batches), len)


def _timed(batches: Iterator[Any], size_of: Callable[[Any], int]) -> tuple[float, float]:
    """Return seconds and processor seconds per image, the first batch left out of the former.

    Processor time of child processes is known once they have ended, so it is of all batches.
    """
    used = core_seconds()
    images = size_of(next(batches))
    first, started = images, time.perf_counter()
    for batch in batches:
        images += size_of(batch)
    seconds = time.perf_counter() - started
    del batches
    return seconds / (images - first), (core_seconds() - used) / images


def _array_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("**/c/**/*") if path.is_file())


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


def copy_small(folder: Path, files: Sequence[Path]) -> None:
    """Copy small images as they are, into two class folders."""
    for index, source in enumerate(files):
        path = folder / f"class-{index % 2}" / f"{index:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(source.read_bytes())


def build(folder: Path, originals: Path, size: int, policy: dict[str, Any]) -> Sides:
    """Compute the three caches of one view each."""
    teacher = write_teacher(folder / "cnn", classes=2, model="cnn")
    forms = {"originals": None, "packed": f"packed:{min(256, size + 32)}", "views": "views"}
    for form, images in forms.items():
        values = {
            "cache": str(folder / form),
            "data": str(originals),
            "teachers": {"cnn": {"model": f"local-dir:{teacher}", "size": size}},
            "views": {"count": 1, **policy},
            "min_accuracy": 0,
            "images": images,
        }
        build_cache(PrecomputeConfig.parse(values, ""))
    return Sides(originals, {form: folder / form for form in forms}, size, policy)


def compare(folder: Path, count: int, rounds: int, cifar: Sequence[Path]) -> Iterator[Measurement]:
    """Yield rates and bytes of all sides, for photographs and small images."""
    write_originals(folder / "photographs", count, cifar)
    sets = {"photographs": (folder / "photographs", SIZE)}
    if cifar:
        copy_small(folder / "small", cifar[:count])
        sets["small images"] = (folder / "small", SMALL)
    for name, (originals, size) in sets.items():
        for policy, options in POLICIES.items():
            sides = build(folder / f"{name}-{policy}", originals, size, options)
            for what in ("rendering", "input"):
                yield from _compared(f"{name}, {policy}, {what}", sides.walks(what), rounds)
            for form, each in sides.bytes_per_image(count).items():
                yield Measurement(f"{name}, {policy}: bytes per image, {form}", each, "B")


def _compared(where: str, walks: Mapping[str, Walk], rounds: int) -> list[Measurement]:
    """Return the ratios of rates between sides, and the medians of each."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in walks}
    for number in range(rounds):
        for name in sorted(walks, reverse=bool(number % 2)):
            found[name].append(walks[name]())
    rows = []
    for ours, other in PAIRS:
        both = list(zip(found[other], found[ours], strict=True))
        for kind, which in (("wall time", 0), ("processor time", 1)):
            low, middle, high = statistics.quantiles(
                [a[which] / b[which] for a, b in both], n=4, method="inclusive"
            )
            name = f"{where}: {ours} to {other}, {kind}"
            bound = None if which else _bound(where, ours, other)
            rows.append(Measurement(name, middle, "x", low, high, target=bound, at_most=False))
    for name, timed in found.items():
        rate = statistics.median(1 / seconds for seconds, _ in timed)
        cost = statistics.median(1e3 * used for _, used in timed)
        note = f"{cost:.3f} core ms"
        rows.append(Measurement(f"{where}: {name}, images per second", rate, "", note=note))
    return rows


def _bound(where: str, ours: str, other: str) -> float | None:
    _, policy, what = where.split(", ")
    return BOUNDS.get((what, policy, ours, other)) if where.startswith("photo") else None


def measure() -> list[Measurement]:
    """Return the rows of the table of all benchmarks: photographs alone, fewer of them."""
    with tempfile.TemporaryDirectory() as folder:
        return list(compare(Path(folder), 512, 3, ()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cifar", type=Path, help="folder of small image files")
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    cifar = sorted(arguments.cifar.rglob("*.jpg"))[: arguments.images] if arguments.cifar else []
    with tempfile.TemporaryDirectory() as folder:
        for row in compare(Path(folder), arguments.images, arguments.rounds, cifar):
            print(row, flush=True)


if __name__ == "__main__":
    main()
