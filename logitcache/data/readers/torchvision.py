"""Data sets that torchvision reads from a folder; it downloads nothing here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from logitcache.data.identity import normalize_key
from logitcache.data.listing import ListedFile, Listing
from logitcache.data.readers.arrays import ArraySource
from logitcache.data.readers.files import FileSource
from logitcache.errors import DataError, UsageError, nearest

if TYPE_CHECKING:
    from logitcache.data.readers.reader import ReaderConfig
    from logitcache.data.source import Source

__all__ = ["listing_of_files", "open_torchvision"]

_SETS = ("cifar10", "cifar100", "mnist", "kmnist", "fashion_mnist", "qmnist")


def open_torchvision(config: ReaderConfig, listing: int) -> Source:
    """List one of torchvision's data sets; those of files are read as files."""
    del listing  # torchvision decides what the images are
    name, _, root = config.name.removeprefix("torch/").partition(":")
    if name not in (*_SETS, "imagenet"):
        raise UsageError(
            f"unknown torchvision data set torch/{name}",
            hint=nearest(name, (*_SETS, "imagenet")),
        )
    if not root:
        what = "the folder of the torchvision data set is not given"
        raise UsageError(what, where=config.name, expected=f"torch/{name}:<folder>")
    from timm.data.dataset_factory import create_dataset

    try:
        dataset: Any = create_dataset(
            f"torch/{name}", root=root, split=config.split, search_split=False, download=False
        )
    except (RuntimeError, FileNotFoundError) as error:
        raise DataError(
            f"torchvision cannot find {name} in this folder",
            where=root,
            got=str(error).split("\n")[0],
        ) from None
    if hasattr(dataset, "samples"):
        return FileSource(Path(dataset.root), listing_of_files(dataset))
    images = [np.asarray(image) for image in dataset.data]
    targets = np.asarray(dataset.targets, dtype=np.int64)
    labels_N = (targets[:, 0] if targets.ndim > 1 else targets).astype(np.int32)
    return ArraySource(
        f"torch/{name}, {config.split}", config.split, images, labels_N, list(dataset.classes)
    )


def listing_of_files(dataset: Any) -> Listing:
    """Return the files of one of torchvision's data sets of folders."""
    names = [str(name) for name in dataset.classes]
    files, labels = [], []
    for path, label in dataset.samples:
        key = normalize_key(os.path.relpath(path, dataset.root))
        files.append(ListedFile(key, names[label], Path(path).stat().st_size, str(path)))
        labels.append(int(label))
    return Listing(files, labels, names)
