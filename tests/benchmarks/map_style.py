"""Map-style access to a cache: targets of rows in random order, and epochs of a ``DataLoader``.

Rows: 32768 of K = 50 of C = 1000, 256 at a time in random order, against one row at a time by
zarr's indexing. Epochs: synthetic photographs of 500 x 375 pixels as JPEG, views of 224 pixels, no
student; a shuffling ``DataLoader`` with 2 workers, which stay alive, against the loader with its
default of a thread for each processor.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from torch.utils.data import DataLoader

from logitcache import CachedDataset, build_cache, loader, open_cache
from logitcache.precompute.config import PrecomputeConfig
from tests.benchmarks.measuring import Measurement, ratio_of_times
from tests.benchmarks.reading import ENCODING, make_cache, repeated
from tests.benchmarks.view_rates import photographs
from tests.cache.building import samples_of
from tests.conftest import write_teacher

ROWS, BATCH, CALLS = 32_768, 256, 128
IMAGES, IMAGE_BATCH, SIZE, WORKERS, ROUNDS = 512, 64, 224, 2, 5


def random_rows() -> Measurement:
    """Return the time of one row that is read by zarr over that of 256 of ``cache.targets``."""
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "c"
        make_cache(path, repeated(ROWS), samples_of(ROWS, unit=ROWS))
        cache = open_cache(path)
        group = zarr.open_group(path / "teachers/t", mode="r")
        arrays: dict[str, Any] = {name: group[name] for name in ENCODING.specs()}

        def ours() -> None:
            for _ in range(CALLS):
                cache.targets(generator.integers(0, ROWS, BATCH))

        def naive() -> None:
            for row in generator.integers(0, ROWS, CALLS).tolist():
                read = {n: np.asarray(array[0, row])[None] for n, array in arrays.items()}
                ENCODING.decode(read)

        # as many calls: each of ours has 256 rows, each of the others has one
        return ratio_of_times(
            f"{BATCH} rows in random order: times faster than one row by zarr",
            ours,
            naive,
            rounds=ROUNDS,
            target=20 / BATCH,
            inverse=True,
        )


def epochs() -> Measurement:
    """Return the images a second of a ``DataLoader`` over those of the loader."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number, content in enumerate(photographs(IMAGES)):
            path = folder / "images" / f"class{number % 2}" / f"{number:04d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        teacher = write_teacher(folder / "teacher", classes=2, model="cnn")
        values = {
            "cache": str(folder / "cache"),
            "data": str(folder / "images"),
            "teachers": {"cnn": {"model": f"local-dir:{teacher}"}},
            "views": {"count": 1},
            "min_accuracy": 0.0,
        }
        build_cache(PrecomputeConfig.parse(values, "benchmark"))
        cache = open_cache(folder / "cache")
        data = CachedDataset(cache, str(folder / "images"), size=SIZE)
        batches = DataLoader(
            data,
            IMAGE_BATCH,
            shuffle=True,
            num_workers=WORKERS,
            persistent_workers=True,
            multiprocessing_context="forkserver",
            collate_fn=data.collate,
        )
        with loader(cache, str(folder / "images"), batch_size=IMAGE_BATCH, size=SIZE) as own:

            def map_style() -> None:
                assert sum(len(targets) for _, targets in batches) == IMAGES

            def in_order() -> None:
                assert sum(len(targets) for _, targets in own.epoch(0)) == IMAGES

            return ratio_of_times(
                f"images/s of DataLoader(CachedDataset, num_workers={WORKERS}) over the loader's",
                map_style,
                in_order,
                rounds=ROUNDS,
                target=0.7,
                inverse=True,
            )


def measure() -> list[Measurement]:
    """Return the speed of rows in random order, and of epochs."""
    torch.manual_seed(0)
    return [random_rows(), epochs()]
