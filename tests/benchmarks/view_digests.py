"""One digest over thousands of views: equal wherever, however and in whatever order they are made.

::

    python -m tests.benchmarks.view_digests --images FOLDER [--renders 10000] [--threads 4]
        [--workers 2 --context spawn] [--reverse] [--batch 64]

Half of the images are the folder's files, decoded; half are synthetic pixels of many shapes. The
views are ``VIEWS`` below: every operation, mixed and derived ones among them. The digest is the
sum modulo 2^256 of sha256(view, row, pixels), so it does not depend on the order of rows.

Needs torch, numpy, Pillow, simplejpeg and pydantic alone, so any environment will do.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import PIL
import torch

from logitcache.views.golden import synthetic_image
from logitcache.views.mix import match_partners
from logitcache.views.render import BatchRequest, ViewRenderer
from logitcache.views.spec import View, ViewsConfig
from logitcache.views.workers import WorkerRenderer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

SIZES = (32, 64)

VIEWS: tuple[View, ...] = (
    *ViewsConfig(auto_augment="rand-m9-mstd0.5-inc1", re_prob=0.3, re_mode="rand").views(),
    *ViewsConfig(auto_augment="rand-m8-n3-mstd101", vflip=0.3, interpolation="bilinear").views(),
    *ViewsConfig(
        color_jitter=(0.4, 0.4, 0.4, 0.1), grayscale_prob=0.2, gaussian_blur_prob=0.5
    ).views(),
    *ViewsConfig(
        seed=5,
        auto_augment="rand-m9-mstd0.5-inc1",
        mixup_alpha=0.8,
        cutmix_alpha=1.0,
        derive=["rot90(1)", "lowres(4)", "mask(0.6)"],
    ).views(),
    ViewsConfig().eval_view(),
)


class Images:
    """Files of a folder, then synthetic pixels."""

    def __init__(self, folder: Path, count: int) -> None:
        files = sorted(folder.rglob("*.jpg"), key=str)[: count // 2]
        self._files = [str(path) for path in files]
        self._keys = [str(path.relative_to(folder)) for path in files]
        self._keys += [f"synthetic/{index}" for index in range(count - len(files))]

    @property
    def hashes(self) -> NDArray[np.uint64]:
        digests = [hashlib.blake2b(key.encode(), digest_size=8).digest() for key in self._keys]
        return np.array([int.from_bytes(digest, "big") for digest in digests], dtype=np.uint64)

    def __call__(self, index: int) -> bytes | NDArray[np.uint8]:
        if index < len(self._files):
            return Path(self._files[index]).read_bytes()
        return synthetic_image(40 + index * 7 % 300, 40 + index * 11 % 260)


def requests(hashes: NDArray[np.uint64], batch: int, *, reverse: bool) -> Iterator[BatchRequest]:
    order = np.arange(len(hashes))[:: -1 if reverse else 1]
    for view in VIEWS[:: -1 if reverse else 1]:
        partners = match_partners(view.seed, view.draw, hashes) if view.mixing else None
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            others = None if partners is None else partners[chosen]
            yield BatchRequest(
                view,
                chosen,
                hashes[chosen],
                partners=others,
                partner_hashes=None if others is None else hashes[others],
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=Path, required=True, help="folder with JPEG files")
    parser.add_argument("--renders", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--context", default="forkserver")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--reverse", action="store_true")
    arguments = parser.parse_args()
    images = Images(arguments.images, -(-arguments.renders // len(VIEWS)))
    renderer: ViewRenderer | WorkerRenderer
    if arguments.workers:
        renderer = WorkerRenderer(
            images, SIZES, workers=arguments.workers, context=arguments.context
        )
    else:
        renderer = ViewRenderer(images, SIZES, threads=arguments.threads)
    started, count, totals = time.monotonic(), 0, {view.id: 0 for view in VIEWS}
    with renderer:
        for batch in renderer.batches(
            requests(images.hashes, arguments.batch, reverse=arguments.reverse)
        ):
            assert not batch.failures, batch.failures
            for position, index in enumerate(batch.request.indices.tolist()):
                address = f"{batch.request.view.id} {index} ".encode()
                content = b"".join(batch.pixels[size][position].tobytes() for size in SIZES)
                digest = hashlib.sha256(address + content).digest()
                totals[batch.request.view.id] += int.from_bytes(digest, "big")
                count += 1
    how = (
        f"{arguments.workers} workers, {arguments.context}"
        if arguments.workers
        else f"{arguments.threads} threads"
    )
    print(
        f"{sum(totals.values()) % 2**256:064x}"[:16],
        f"{count} renders, {how}, batch {arguments.batch}",
        "reversed," if arguments.reverse else "in order,",
        f"Python {platform.python_version()}, torch {torch.__version__}, Pillow {PIL.__version__},",
        f"numpy {np.__version__}, {torch.backends.cpu.get_cpu_capability()},",
        f"PYTHONHASHSEED {os.environ.get('PYTHONHASHSEED', '-')},",
        f"{time.monotonic() - started:.0f} s",
    )
    for view in VIEWS:
        names = ", ".join(operation.name for operation in view.operations)
        print(f"  {totals[view.id] % 2**64:016x} {names} {view.interpolation}", file=sys.stderr)


if __name__ == "__main__":
    main()
