"""What keeping a tap costs and loses, as ``logitcache plan`` says, and how fast it is read back.

A CNN and a vision transformer see labeled digits for a minute; then a cache of their taps on the
same images is planned with every option in turn. Bytes are those of an image and view, the error is
that of all numbers together, relative to their norm.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from logitcache.encoding.features import FeatureEncoding
from logitcache.precompute.config import PrecomputeConfig
from logitcache.precompute.estimate.estimate import estimate_cache
from logitcache.targets.decoding.feature_groups import decode_features
from logitcache.training.config import TrainConfig
from logitcache.training.loop import train_student
from tests.benchmarks.measuring import Measurement, ratio_of_times

NETWORKS: dict[str, dict[str, Any]] = {
    "cnn": {"model": "resnet10t", "kwargs": {"channels": [32, 64, 128, 256], "stem_width": 16}},
    "vit": {
        "model": "vit_tiny_patch16_224",
        "kwargs": {"img_size": 32, "patch_size": 4, "embed_dim": 96, "depth": 4, "num_heads": 4},
    },
}
TAPS = {"cnn": "layer3", "vit": "blocks.3"}
STEPS, BATCH = 200, 256
OPTIONS: tuple[dict[str, Any], ...] = (
    {"values": "float16"},
    {"values": "bfloat16"},
    {"values": "int8"},
    {"values": "int8", "scale": "channel"},
    {"values": "int8", "pool": 2},
    {"values": "int8", "tokens": 2},
    {"values": "int8", "principal": 24},
    {"values": "float16", "reduce": "mean"},
    {"values": "float16", "reduce": "energy"},
)


def measure() -> list[Measurement]:
    """Return bytes and error of every option for both networks, and the time of decoding."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, network in NETWORKS.items():
            out = trained(network, Path(folder) / name)
            rows += [planned(name, out, option) for option in OPTIONS]
    return [*rows, *decoding()]


def trained(network: dict[str, Any], out: Path) -> Path:
    """Train a network on digits and return where it is exported."""
    config = {
        "data": "digits",
        "student": {**network, "size": 32},
        "objectives": [{"label": {}}],
        "steps": STEPS,
        "batch_size": 64,
        "out": str(out),
    }
    train_student(TrainConfig.parse(config, "features"))
    return out / "export"


def planned(name: str, export: Path, option: dict[str, Any]) -> Measurement:
    """Return what keeping a tap with these options comes to."""
    teacher = {"model": f"local-dir:{export}", "features": {TAPS[name]: option}}
    config = {"cache": "nowhere", "data": "digits", "teachers": {name: teacher}}
    found = estimate_cache(PrecomputeConfig.parse(config, "features"))
    tap = found.teachers[name].taps[TAPS[name]]
    shape = " x ".join(map(str, tap.encoding["shape"]))
    settings = ", ".join(f"{key} {value}" for key, value in option.items())
    fidelity = tap.fidelity
    return Measurement(
        f"{name}, {TAPS[name]}: {settings}",
        tap.row_bytes,
        "B",
        note=f"{shape}; error {fidelity['error']:.2g}, of it coding {fidelity['coding']:.2g}; "
        f"cosine {fidelity['cosine']:.5f}",
    )


def decoding() -> list[Measurement]:
    """Return the time of gathering a batch of tokens of a ViT-S against copying it as float32."""
    shape = (197, 384)
    window = np.random.default_rng(0).normal(size=(2 * BATCH, *shape)).astype(np.float32)
    chosen = np.random.default_rng(1).permutation(len(window))[:BATCH]
    rows = []
    for encoding in (
        FeatureEncoding("NLC", shape, "float16"),
        FeatureEncoding("NLC", shape, "int8"),
    ):
        stored = encoding.encode(window)

        def gathered(encoding: FeatureEncoding = encoding, stored: Any = stored) -> torch.Tensor:
            arrays = {name: array[chosen] for name, array in stored.items()}
            return decode_features(encoding, arrays, None).values

        rows.append(
            ratio_of_times(
                f"gathering {BATCH} rows of 197 x 384, {encoding.values}, to float32 in memory",
                gathered,
                lambda: torch.from_numpy(window[chosen]),
                rounds=11,
            )
        )
    return rows
