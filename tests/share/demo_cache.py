"""The cache ``demo:digits`` of the package, written by ``python -m tests.share.demo_cache``.

A small convolutional network is trained on 600 labels of scikit-learn's digits, and its outputs for
all images of the training split are cached in two random views. The same libraries on the same
class of processor write the same bytes.
"""

from __future__ import annotations

import contextlib
import tempfile
import zipfile
from pathlib import Path

import torch

import logitcache
from logitcache.cache.store.shelf import demo_archive

_VIEWS = {"scale": [0.8, 1.0], "ratio": [0.8, 1.25], "hflip": 0.0}
_TEACHER = {
    "data": "digits",
    "student": {
        "model": "resnet10t",
        "kwargs": {"channels": [16, 32, 64, 128], "stem_width": 16},
        "size": 16,
    },
    "views": {**_VIEWS, "count": 1},
    "labels": {"count": 600},
    "steps": 300,
    "batch_size": 64,
    "optimizer": {"lr": 0.003},
    "threads": 1,
    "device": "cpu",
}
_FACTS = {
    "title": "Digits: outputs of a small convolutional network",
    "license": "apache-2.0",
    "images_license": "cc-by-4.0",
    "teacher_licenses": {"cnn": "apache-2.0"},
    "source": "scikit-learn: sklearn.datasets.load_digits, from UCI Optical Recognition of "
    "Handwritten Digits",
}


def write_demo(archive: Path) -> None:
    """Train the teacher, compute the cache, and write it as a zip file.

    The working folder is used, and named by relative paths, which are part of the cache.
    """
    torch.manual_seed(0)
    torch.set_num_threads(1)
    logitcache.train_student(logitcache.TrainConfig.parse({**_TEACHER, "out": "cnn"}, "train"))
    values = {
        "cache": "cache",
        "data": "digits",
        "teachers": {"cnn": {"model": "local-dir:cnn/export"}},
        "views": {**_VIEWS, "count": 2},
        "encoding": {"lse": False, "label_log_probs": False},
        "card": _FACTS,
        "threads": 1,
        "device": "cpu",
    }
    logitcache.build_cache(logitcache.PrecomputeConfig.parse(values, "precompute"))
    logitcache.pull("cache", "copy")  # one revision, without what led to it
    root = Path("copy")
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as written:
        for path in sorted(path for path in root.rglob("*") if path.is_file()):
            member = zipfile.ZipInfo(path.relative_to(root).as_posix())  # of a fixed time
            written.writestr(member, path.read_bytes(), zipfile.ZIP_DEFLATED, compresslevel=9)


def main() -> None:
    """Write the archive that is part of the package."""
    archive = demo_archive("digits")
    with tempfile.TemporaryDirectory() as work, contextlib.chdir(work):
        write_demo(archive)


if __name__ == "__main__":
    main()
