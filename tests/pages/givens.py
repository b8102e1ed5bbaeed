"""What pages take as given: images, caches and weights, made before a page is run."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import timm
import torch

from logitcache.cache.read.reader import open_cache
from logitcache.precompute.build import build_cache
from logitcache.precompute.config import PrecomputeConfig
from tests.conftest import write_images, write_teacher
from tests.pages.small_networks import NETWORKS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import nn

__all__ = ["GIVENS"]

CLASSES = ("cat", "dog")
Replacements = dict[str, str]


def _photos(folder: Path) -> Replacements:
    """Write folders of two classes: 60 images for training, 8 for validation."""
    write_images(folder / "photos" / "train", 30, CLASSES)
    write_images(folder / "photos" / "val", 4, CLASSES)
    return {}


def _unlabeled(folder: Path) -> Replacements:
    """Write a folder of images without classes."""
    (folder / "photos" / "unlabeled").mkdir(parents=True)
    for path in (folder / "photos" / "val").rglob("*.jpg"):
        name = f"{path.parent.name}-{path.name}"
        shutil.copyfile(path, folder / "photos" / "unlabeled" / name)
    return {}


def _tagged(folder: Path) -> Replacements:
    """Write ``photos.jsonl``, which lists images with one or two classes."""
    rows = [
        {"path": path.relative_to(folder).as_posix(), "label": ["cat", "dog"][: 1 + number % 2]}
        for number, path in enumerate(sorted((folder / "photos" / "val").rglob("*.jpg")))
    ]
    (folder / "photos.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return {}


def _cnn(folder: Path) -> Replacements:
    """Write ``runs/cnn/export``, a teacher of the classes with random weights."""
    write_teacher(folder / "runs/cnn/export", classes=len(CLASSES), model="cnn")
    return {}


def _cache(folder: Path) -> Replacements:
    """Compute ``runs/cache`` of the training images: one teacher, ``cnn``, and four views.

    Its revision takes the place of the digest that pages show.
    """
    _cnn(folder)
    values = {
        "cache": str(folder / "runs/cache"),
        "data": str(folder / "photos/train"),
        "teachers": {"cnn": {"model": f"local-dir:{folder / 'runs/cnn/export'}"}},
        "views": {"count": 4},
        "batch_size": 16,
    }
    build_cache(PrecomputeConfig.parse(values, ""))
    return {"5a1a9f0c2d31": open_cache(str(folder / "runs/cache")).revision_sha256[:12]}


def _weights(folder: Path) -> Replacements:
    """Write weights files of small networks, which stand in for those that pages name."""
    for file, model, classes in [
        ("cnn.pth", "resnet50", len(CLASSES)),
        ("tagger.pth", "resnet50", len(CLASSES)),
        ("imagenet.pth", "resnet50", 1000),
        ("checkpoint.pth", "rednet50", len(CLASSES)),
        ("vit.safetensors", "vit_small_patch16_224", len(CLASSES)),
        ("dinov2.safetensors", "vit_small_patch14_dinov2", 0),
    ]:
        name, settings = NETWORKS[model]
        _write(timm.create_model(name, num_classes=classes, **settings), folder / file)
    from torchvision.models import mobilenet_v3_small

    _write(mobilenet_v3_small(num_classes=len(CLASSES)), folder / "mobilenet.pth")
    return {}


def _write(network: nn.Module, path: Path) -> None:
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(network.state_dict(), path)
    else:
        torch.save(network.state_dict(), path)


def _demo(folder: Path) -> Replacements:
    """Write ``runs/demo``, a folder of runs: a cache and the student of a pipeline."""
    (folder / "runs" / "demo").mkdir(parents=True)
    shutil.copytree(folder / "runs" / "cache", folder / "runs" / "demo" / "cache")
    return {}


GIVENS: dict[str, Callable[[Path], Replacements]] = {
    "photos": _photos,
    "unlabeled": _unlabeled,
    "tagged": _tagged,
    "cnn": _cnn,
    "cache": _cache,
    "weights": _weights,
    "demo": _demo,
}
"""What a page can name, in this order; functions return what is replaced in the page's script."""
