"""Recall@1 of embeddings on classes that no student has seen: the claim of RKD.

The students of ``claims.yaml`` that learn from five classes are run on the images of the other
five. Recall@1 is the share of images whose nearest other image, by Euclidean distance of the
vectors before the classifier, has the same class, in percent::

    python -m tests.benchmarks.recall cifar10/val --out runs/claims --seeds 0 1 2 3 4
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING

import timm
import torch

from logitcache.data.readers import DataConfig, open_source
from logitcache.networks.build import input_spec
from logitcache.networks.taps import TappedNetwork
from logitcache.targets.images.image_rows import number_rows
from logitcache.targets.loader import Loader
from logitcache.targets.settings import LoaderSettings
from logitcache.training.evaluation.evaluator import eval_views
from tests.benchmarks.real import differences

if TYPE_CHECKING:
    from torch import Tensor

STUDENT = "relations"
CONTROLS = ["relations-shuffled", "relations-labels"]
UNSEEN = ["dog", "frog", "horse", "ship", "truck"]
EMBEDDING = "pre_logits"


@torch.inference_mode()
def embeddings(export: Path, images: str) -> tuple[Tensor, Tensor]:
    """Return the embeddings (N, D) of the images of the unseen classes, and their labels (N,)."""
    network = timm.create_model(f"local-dir:{export}", pretrained=True).eval()
    spec = input_spec(network)
    tapped = TappedNetwork(network, [EMBEDDING], size=spec.size)
    rows = number_rows(open_source(DataConfig(name=images, classes=UNSEEN)))
    settings = LoaderSettings(256, spec.size, mean=spec.mean, std=spec.std, threads=1)
    vectors, labels = [], []
    with Loader(rows, settings, views=eval_views(spec)) as loader:
        for batch, targets in loader.epoch(0):
            _, held = tapped(batch)
            vectors.append(held[EMBEDDING])
            labels.append(targets.labels)
    return torch.cat(vectors), torch.cat(labels)


def recall(vectors: Tensor, labels: Tensor) -> float:
    """Return Recall@1 in percent, for embeddings (N, D) and labels (N,)."""
    distances = torch.cdist(vectors, vectors).fill_diagonal_(float("inf"))
    return 100 * float((labels[distances.argmin(1)] == labels).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.recall",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("images", help="folder of the images to evaluate on")
    parser.add_argument("--out", type=Path, default=Path("runs/claims"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = {
        name: [
            recall(*embeddings(arguments.out / f"seed-{seed}" / name / "export", arguments.images))
            for seed in arguments.seeds
        ]
        for name in [STUDENT, *CONTROLS]
    }
    print("| student | Recall@1 | seeds |")
    for name, values in found.items():
        seeds = ", ".join(f"{value:.2f}" for value in values)
        print(f"| {name} | {mean(values):.2f} ± {stdev(values):.2f} | {seeds} |")
    print("| difference | mean | 95 % interval | seeds |")
    for name in CONTROLS:
        pairs = [mine - theirs for mine, theirs in zip(found[STUDENT], found[name], strict=True)]
        print(f"| {STUDENT} less {name} | {differences(pairs)} |")


if __name__ == "__main__":
    main()
