"""Students of ten classes from a teacher of 1000: mapped at read time, against a teacher of ten.

One cache has EfficientNet-Lite0 twice (see :mod:`tests.benchmarks.imagenet_logits`): with all of
its 1000 classes, and with an output for each class of CIFAR-10, the logsumexp of the same ImageNet
classes, so that its probabilities are those of the merged classes, normalized. Students are trained
on the outputs alone, without labels, in pairs of the same seed::

    python -m tests.benchmarks.class_lens cifar10/train cifar10/val runs/class_lens

The folder is resumed if it exists. ``cifar10_of_imagenet.csv`` is the class map. CIFAR-10 has no
class of ImageNet for deer: antelopes take its place.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

import timm
import torch
from torch import nn

from logitcache.data.class_map import EVERY_TEACHER, class_maps, map_classes
from logitcache.networks.build import input_spec
from logitcache.precompute.build import build_cache
from logitcache.precompute.config import PrecomputeConfig
from logitcache.report.class_shares import class_shares
from logitcache.training.config import TrainConfig
from logitcache.training.export.export import export_network
from logitcache.training.loop import train_student
from tests.benchmarks.imagenet_logits import teacher

if TYPE_CHECKING:
    from torch import Tensor

CLASS_MAP = Path(__file__).with_name("cifar10_of_imagenet.csv")
SIZE, VIEWS, IMAGES, VALIDATION, EPOCHS, SEEDS = 64, 2, 1000, 1000, 10, 3
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "a teacher of ten classes": ("ten", {}),
    "mapped, weight": ("imagenet", {"outside": "weight"}),
    "mapped, uniform": ("imagenet", {"outside": "uniform"}),
    "mapped, renorm": ("imagenet", {"outside": "renorm"}),
}


class Merged(nn.Module):
    """A network with an output for each class of a class map: the logsumexp of its classes."""

    def __init__(self, network: Any, names: list[str], own: list[str]) -> None:
        super().__init__()
        class_map = class_maps(str(CLASS_MAP))[EVERY_TEACHER]
        self._targets = map_classes(class_map, own, names, str(CLASS_MAP)).targets
        self._classes = len(names)
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        logits = self.network(images)
        groups = [logits[:, self._targets == c].logsumexp(1) for c in range(self._classes)]
        return torch.stack(groups, 1)


def imagenet_names() -> list[str]:
    """Return the WordNet ids of the teacher's outputs."""
    info: Any = timm.data.ImageNetInfo("imagenet-1k")
    return list(info.label_names())


def ten_classes() -> tuple[nn.Module, dict[str, Any]]:
    """Return the teacher of ten classes, as ``MODULE:FACTORY``."""
    network = teacher()
    names = sorted(class_maps(str(CLASS_MAP))[EVERY_TEACHER])
    cfg = network.pretrained_cfg
    settings = {"size": SIZE, "mean": cfg["mean"], "std": cfg["std"], "label_names": names}
    return Merged(network, names, imagenet_names()), settings


def make_cache(train: str, out: Path) -> None:
    network = teacher()
    export_network(network, input_spec(network, SIZE), out / "teacher", imagenet_names())
    own = {"model": f"local-dir:{out / 'teacher'}", "class_map": "own", "size": SIZE}
    values: dict[str, Any] = {
        "cache": str(out / "cache"),
        "data": {"name": train, "limit": IMAGES},
        "teachers": {"imagenet": own, "ten": {"model": f"{__spec__.name}:ten_classes"}},
        "views": {"count": VIEWS, "scale": [0.6, 1.0]},
        "encoding": {"kind": "dense"},
    }
    summary = build_cache(PrecomputeConfig.parse(values, "precompute"))
    print(f"{summary.computed} rows computed in {summary.seconds:.0f} s; {summary.accuracy}")


def accuracy(train: str, val: str, out: Path, arm: str, seed: int) -> float:
    name, options = ARMS[arm]
    values: dict[str, Any] = {
        "out": str(out / f"{arm.replace(', ', '-').replace(' ', '-')}-{seed}"),
        "data": {"name": train, "limit": IMAGES},
        "val": {"name": val, "limit": VALIDATION},
        "cache": str(out / "cache"),
        "class_map": {"imagenet": str(CLASS_MAP)},
        "objectives": [{"soft": {"teachers": {name: 1.0}, **options}}],
        "student": {
            "model": "resnet10t",
            "size": 32,
            "kwargs": {"stem_width": 16, "channels": [16, 32, 64, 64]},
        },
        "epochs": EPOCHS,
        "eval_every": EPOCHS,
        "batch_size": 32,
        "optimizer": {"lr": 2e-3},
        "image_memory": "1GB",
        "seed": seed,
    }
    result = train_student(TrainConfig.parse(values, "train"), resume=True)
    assert result.evaluation is not None
    return 100 * result.evaluation.score


def compare(train: str, val: str, out: Path) -> None:
    """Train the students and print a table."""
    shares = class_shares(str(out / "cache"), {"imagenet": str(CLASS_MAP)})
    print(json.dumps(shares.to_json(), indent=1))
    found: dict[str, list[float]] = {}
    for seed in range(SEEDS):
        for arm in ARMS:
            top1 = accuracy(train, val, out, arm, seed)
            found.setdefault(arm, []).append(top1)
            print(f"seed {seed}, {arm}: {top1:.2f}", flush=True)
    reference = found["a teacher of ten classes"]
    print("| student of | accuracy | difference, paired |\n|---|---|---|")
    for arm, values in found.items():
        paired = [value - other for value, other in zip(values, reference, strict=True)]
        shown = ", ".join(f"{value:.2f}" for value in values)
        print(f"| {arm} | {shown} | {mean(paired):+.2f}, sd {stdev(paired):.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("train", help="images of CIFAR-10 in a folder per class")
    parser.add_argument("val", help="validation images")
    parser.add_argument("out", type=Path, help="folder of the cache and the runs")
    arguments = parser.parse_args()
    started = time.time()
    make_cache(arguments.train, arguments.out)
    compare(arguments.train, arguments.val, arguments.out)
    print(f"{time.time() - started:.0f} s, load {os.getloadavg()}")


if __name__ == "__main__":
    main()
