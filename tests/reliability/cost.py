"""What trust costs: verification in GB/s a core, digests as a share of a precompute."""

from __future__ import annotations

import hashlib
import statistics
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from logitcache.cache.format.manifest import DataRecord, Segment
from logitcache.cache.format.names import SAMPLE_ARRAYS
from logitcache.cache.store.open import locate
from logitcache.cache.verify.integrity import verify
from logitcache.cache.write.unit_commit import Conditions
from logitcache.cache.write.writer import CacheWriter
from logitcache.data.identity import content_digest
from logitcache.encoding.arrays import filled
from logitcache.encoding.dense import DenseEncoding
from tests.cache.building import CLASS_NAMES, RECIPE, VIEW, declare

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_UNIT, _CLASSES = 32768, 1000


def verification(folder: Path, units: int = 8, rounds: int = 5) -> dict[str, Any]:
    """Verify a cache of about 55 MB a unit, warm, with one thread and with all processors."""
    _synthetic_cache(folder / "cache", units)
    verify(folder / "cache")
    content = (folder / "cache/teachers/a/logp/c/0/0/0").read_bytes()
    total = verify(folder / "cache").bytes
    work: dict[str, tuple[int, Callable[[], object]]] = {
        "sha256 alone": (len(content), lambda: hashlib.sha256(content).hexdigest()),
        "verify, one thread": (total, lambda: verify(folder / "cache", threads=1)),
        "verify, all processors": (total, lambda: verify(folder / "cache")),
    }
    wall: dict[str, list[float]] = {name: [] for name in work}
    core: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):  # interleaved, so that noise hits all alike
        for name, (count, do) in work.items():
            started, spent = time.perf_counter(), time.process_time()
            do()
            wall[name].append(count / (time.perf_counter() - started) / 1e9)
            core[name].append(count / (time.process_time() - spent) / 1e9)
    return {
        "gigabytes": round(total / 1e9, 3),
        "rounds": rounds,
        "GB per second of the wall, median": _medians(wall),
        "GB per second of a core, median": _medians(core),
    }


def digests(folder: Path, images: int = 48, size: tuple[int, int] = (500, 375)) -> dict[str, Any]:
    """Precompute one view with a ResNet-50, and time what digesting images takes of it."""
    import timm
    import torch
    from safetensors.torch import save_file

    from logitcache.precompute.build import build_cache
    from logitcache.precompute.config import PrecomputeConfig

    _photographs(folder / "images", images, size)
    network = timm.create_model("resnet50", num_classes=2)
    save_file(network.state_dict(), folder / "resnet50.safetensors")
    spent: list[float] = []

    def timed(image: Any) -> bytes:
        started = time.thread_time()
        found = content_digest(image)
        spent.append(time.thread_time() - started)
        return found

    values = {
        "cache": str(folder / "digests"),
        "data": str(folder / "images"),
        "teachers": {"r50": {"model": "resnet50", "weights": str(folder / "resnet50.safetensors")}},
        "unit_rows": 16,
        "batch_size": 16,
        "device": "cpu",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("logitcache.precompute.run.source_renderer.content_digest", timed)
        summary = build_cache(PrecomputeConfig.parse(values, "cost"))
    file_bytes = [path.stat().st_size for path in (folder / "images").rglob("*.jpg")]
    return {
        "images": summary.images,
        "bytes of an image": round(statistics.mean(file_bytes)),
        "threads of torch": torch.get_num_threads(),
        "precompute, s": round(summary.seconds, 2),
        "digests, s of a core": round(sum(spent), 4),
        "share of wall time": round(sum(spent) / summary.seconds, 6),
        "us an image": round(1e6 * sum(spent) / len(spent), 1),
    }


def _medians(rates: dict[str, list[float]]) -> dict[str, float]:
    return {name: round(statistics.median(values), 3) for name, values in rates.items()}


def _synthetic_cache(path: Path, units: int) -> None:
    """Write dense answers that hardly compress, as real ones do."""
    writer = CacheWriter.create(
        locate(path),
        unit_rows=_UNIT,
        segment=Segment(start=0, rows=units * _UNIT),
        data=DataRecord(description="synthetic", class_names=CLASS_NAMES),
        versions={},
    )
    writer.add_views({VIEW: RECIPE})
    group = declare(writer, "a", DenseEncoding(_CLASSES), _UNIT)
    generator = np.random.default_rng(0)
    for unit in range(units):
        samples = filled(SAMPLE_ARRAYS, _UNIT)
        samples["key"] = np.array([f"{unit}/{i}" for i in range(_UNIT)], dtype=object)
        writer.write_samples(unit, samples)
        logp = -generator.gamma(4.0, 2.0, (_UNIT, _CLASSES)).astype(np.float16)
        arrays = {**filled(group.specs(), _UNIT), "logp": logp}
        writer.write_unit(group, VIEW, unit, arrays, Conditions())
    writer.seal("synthetic", {})


def _photographs(root: Path, count: int, size: tuple[int, int]) -> None:
    """Write JPEG files about as large as ImageNet's."""
    generator = np.random.default_rng(0)
    for index in range(count):
        folder = root / ("a", "b")[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        coarse = generator.integers(0, 256, (size[1] // 3, size[0] // 3, 3)).astype(np.uint8)
        picture = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
        picture.save(folder / f"{index}.jpg", quality=90)
