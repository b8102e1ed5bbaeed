"""Golden caches: small caches of every released format version, and what reading them returns.

``python -m tests.golden.caches_of VERSION [NAME...]`` writes ``caches/VERSION/*.tar.xz`` and
``*.npz`` with the code of that version; it is run once per release. A later difference is a broken
promise, not a reason to write them again. The images and the weights of the networks are made here
out of integers, so that every machine makes the same bytes.

=============  =====================================================================================
cache          what it holds
=============  =====================================================================================
encodings      every encoding of logits; two segments, an unreadable image, an excluded image
features       every kind of stored feature, of a convolutional network and of a vision transformer
views          every operation of a view, mixing included
wide           more than 65536 classes, so 32-bit class ids; no image and no network
transform      the transform encoding (from 0.2); no image and no network
packed         a cache with its images, one of them unreadable (from 0.2)
unsealed       a run that was stopped before it was complete
label_sets     images with any number of classes; a view that mixes them (from 0.2)
sigmoid        log-odds of teachers with a sigmoid, of both types (from 0.2)
odd            the odd files of ``odd_images.py``, decoded by the table of its time
=============  =====================================================================================
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import struct
import sys
import tarfile
import tempfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import save_file

from logitcache.cache.format.groups import row_groups
from logitcache.cache.read.reader import open_cache
from logitcache.cache.write.exclude import withdraw_images
from logitcache.data.packing import ImagesConfig
from logitcache.data.readers import DataConfig
from logitcache.encoding.basis import Basis, principal_directions
from logitcache.encoding.logits import log_softmax
from logitcache.encoding.sparse import SparseEncoding
from logitcache.encoding.transform import TransformEncoding
from logitcache.errors import CacheUnsealed, Interrupted
from logitcache.networks.build import NetworkConfig, build_network
from logitcache.precompute.build import build_cache
from logitcache.precompute.config import PrecomputeConfig
from logitcache.targets.loader import loader
from tests.cache.building import make_cache
from tests.golden.odd_images import read_files

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from logitcache.cache.read.reader import Cache

HERE = Path(__file__).parent / "caches"
CLASSES = tuple(f"class-{letter}" for letter in "abcdefghijkl")
NETWORKS: dict[str, dict[str, Any]] = {
    "cnn": {"model": "resnet10t", "kwargs": {"channels": [8, 8, 8, 8], "stem_width": 8}, "size": 8},
    "vit": {
        "model": "vit_tiny_patch16_224",
        "kwargs": {"img_size": 16, "patch_size": 4, "embed_dim": 12, "depth": 1, "num_heads": 2},
        "size": 16,
    },
}
FEATURES: dict[str, dict[str, Any]] = {
    "cnn": {
        "layer1": {"values": "int8"},
        "layer1.0.bn1": {"values": "int8", "scale": "channel", "standardize": True},
        "layer1.0.bn2": {"tokens": 2},
        "layer2": {"values": "bfloat16", "reduce": "energy"},
        "layer3": {"reduce": "mean"},
        "layer1.0.conv1": {"pool": 1, "principal": 3},
        "pre_logits": {},
    },
    "vit": {
        "blocks.0": {"tokens": 5, "values": "int8"},
        "norm": {"prefix": False, "principal": 4, "values": "bfloat16"},
        "pre_logits": {"values": "int8"},
    },
}
VIEWS: tuple[dict[str, Any], ...] = (
    {"count": 0, "eval": True},
    {"count": 0, "eval": True, "crop_mode": "squash", "crop_pct": 0.9},
    {"count": 0, "eval": True, "crop_mode": "border", "interpolation": "bilinear"},
    {"count": 1, "vflip": 0.5, "derive": ["rot90(1)", "lowres(4)", "mask(0.6)"]},
    {"count": 1, "seed": 1, "auto_augment": "rand-m9-n2-mstd0.5-inc1"},
    {
        "count": 1,
        "seed": 2,
        "color_jitter": (0.4, 0.4, 0.4, 0.1),
        "grayscale_prob": 0.5,
        "gaussian_blur_prob": 0.5,
    },
    {"count": 1, "seed": 3, "re_prob": 1.0, "re_count": 2},
    {"count": 1, "seed": 4, "re_prob": 1.0, "re_mode": "rand"},
    {"count": 1, "seed": 5, "re_prob": 1.0, "re_mode": "pixel", "re_size": 8},
    {"count": 1, "seed": 6, "mixup_alpha": 0.8},
    {"count": 1, "seed": 7, "cutmix_alpha": 1.0, "mixup_alpha": 0.2, "derive": ["rot90(2)"]},
    {"count": 1, "seed": 8, "cutmix_minmax": (0.2, 0.8), "mix_prob": 0.7},
)
ENCODINGS: dict[str, dict[str, Any]] = {
    "codes-8": {"top_k": 5},
    "codes-5": {"top_k": 5, "bits": 5},
    "codes-4": {"top_k": 3, "bits": 4, "lse": False, "label_log_probs": False},
    "float16-k": {"top_k": 4, "sparse_values": "float16"},
    "mass": {"kind": "sparse", "top_k": 8, "mass": 0.7},
    "dense": {"kind": "dense"},
    "dense-8": {"kind": "dense", "dense_values": "uint8"},
}
MORE = 5
"""Images of each of the first two classes that are added as a second segment."""
IMAGES: dict[str, dict[str, Any]] = {
    "encodings": {"bad": True},
    "packed": {"bad": True, "per_class": 2},
    "unsealed": {"bad": True},
    "views": {"per_class": 1},
}
"""Which images a cache begins with, as for :func:`write_images`."""


def png(pixels_HW3: NDArray[np.uint8]) -> bytes:
    """Return a PNG of stored blocks: the same bytes with every version of zlib."""
    height, width, _ = pixels_HW3.shape
    raw = b"".join(b"\0" + row.tobytes() for row in pixels_HW3)
    block = struct.pack("<BHH", 1, len(raw), len(raw) ^ 0xFFFF) + raw
    stream = b"\x78\x01" + block + struct.pack(">I", zlib.adler32(raw))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", stream), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def write_images(root: Path, *, per_class: int = 3, more: bool = False, bad: bool = False) -> None:
    """Write a few images of every class.

    Args:
        root: Folder of the class folders.
        per_class: How many.
        more: Whether to write the images of the second segment, too.
        bad: Whether one of the files is cut in half.
    """
    for number, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True, exist_ok=True)
        for index in range(per_class + (MORE if more and number < 2 else 0)):
            generator = np.random.Philox(key=[number, index])
            shape = (10 + index % 4, 12, 3)
            noise = np.asarray(generator.random_raw(int(np.prod(shape))) >> 57, dtype=np.uint8)
            content = png(noise.reshape(shape) + np.uint8(10 * number))
            if bad and (number, index) == (3, 1):
                content = content[: len(content) // 2]
            (root / name / f"{index:03d}.png").write_bytes(content)


def write_weights(path: Path, network: dict[str, Any], seed: int) -> None:
    """Write weights that are multiples of a power of two, the same on every machine."""
    built = build_network(NetworkConfig(model=network["model"], kwargs=network["kwargs"]), 12)
    tensors = {}
    for number, (name, tensor) in enumerate(sorted(built.state_dict().items())):
        words = np.asarray(np.random.Philox(key=[seed, number]).random_raw(tensor.numel()))
        values: NDArray[Any] = (words >> np.uint64(57)).astype(np.float32) - 64  # -64 to 63
        if name.endswith(("running_var", "bn1.weight", "bn2.weight", "norm.weight")):
            values = 96 + values / 2  # about one
        scale = 2.0**-6 if tensor.ndim < 2 else 2.0**-8
        if tensor.dtype == torch.int64:
            tensors[name] = torch.zeros_like(tensor)
            continue
        if name in {"fc.weight", "head.weight"}:
            scale = 2.0**-5  # answers that are neither flat nor certain
        tensors[name] = torch.from_numpy((values * scale).astype(np.float32)).reshape(tensor.shape)
    save_file(tensors, path)


@contextlib.contextmanager
def workplace(root: Path, **images: Any) -> Iterator[None]:
    """Enter a folder that holds ``images`` and the weights; paths in caches are relative to it.

    Args:
        root: The folder.
        images: As for :func:`write_images`.
    """
    root.mkdir(parents=True, exist_ok=True)
    write_images(root / "images", **images)
    for seed, (name, network) in enumerate(NETWORKS.items()):
        write_weights(root / f"{name}.safetensors", network, seed)
    before = Path.cwd()
    os.chdir(root)
    try:
        yield
    finally:
        os.chdir(before)


def config_of(
    teachers: dict[str, dict[str, Any]], views: dict[str, Any], encoding: dict[str, Any]
) -> PrecomputeConfig:
    """Return what is precomputed, in the folder of :func:`workplace`."""
    return PrecomputeConfig.parse(
        {
            "cache": "cache",
            "data": "images",
            "teachers": teachers,
            "views": views,
            "encoding": encoding,
            "batch_size": 8,
            "unit_rows": 16,
            "device": "cpu",
            "threads": 1,
            "on_bad_image": "skip",
            "min_accuracy": 0,
        },
        "golden",
    )


def teacher(network: str, **more: Any) -> dict[str, Any]:
    """Return the configuration of a teacher with one of the networks."""
    return {**NETWORKS[network], "weights": f"{network}.safetensors", **more}


def expected(cache: Cache, *, images: str | None = None, size: int = 8) -> dict[str, Any]:
    """Return everything that reading a cache gives, as arrays by name.

    Args:
        cache: An open cache.
        images: The images it was made from; without them nothing is rendered.
        size: Side at which they are rendered, in pixels.
    """
    samples = cache.samples
    found: dict[str, Any] = {
        "samples/key": samples.keys.astype(str),
        "samples/hash": samples.hashes,
        "samples/digest": samples.digests,
        "samples/bytes": samples.sizes,
        "samples/label": samples.labels,
        "samples/status": samples.status,
        "class_names": np.array(cache.class_names),
        "views": np.array(list(cache.views)),
    }
    end = -(-cache.rows_end // cache.unit_rows) * cache.unit_rows
    for name, group in row_groups(cache.groups).items():
        encoding: Any = vars(group)["encoding"]
        for view_id in group.view_ids:
            encoded = cache.read(name, view_id, 0, end)
            prefix = f"{name}|{view_id}"
            found |= {f"{prefix}|stored|{array}": values for array, values in encoded.items()}
            with np.errstate(invalid="ignore", divide="ignore"):  # rows without an answer
                decoded: Any = encoding.decode(encoded)
            if isinstance(decoded, np.ndarray):
                found[f"{prefix}|decoded"] = decoded
                continue
            arrays = {n: v for n, v in vars(decoded).items() if isinstance(v, np.ndarray)}
            found |= {f"{prefix}|decoded|{field}": value for field, value in arrays.items()}
    for view_id in cache.views:
        if f"views/{view_id}" in cache.revision.ledgers:
            found[f"partners|{view_id}"] = cache.partners(view_id)
    if samples.label_sets is not None:
        count, ids = samples.label_sets.rows(cache.manifest.data.label_width or 0)
        found |= {"samples/label_count": count, "samples/label_ids": ids}
    if cache.image_bytes is not None:
        images_of = map(cache.image_bytes.read, range(cache.rows_end))
        digests = [hashlib.sha256(image).hexdigest() for image in images_of]
        found |= {"images": np.array(digests)} | _epochs(cache, None, size)
    elif images is not None:
        found |= _epochs(cache, images, size)
    return found


def _epochs(cache: Cache, images: str | None, size: int) -> dict[str, Any]:
    """Return what a student is shown in an epoch of every view."""
    found: dict[str, Any] = {}
    features = list(cache.features)
    with loader(cache, images, batch_size=8, size=size, features=features, threads=1) as batches:
        for epoch in range(len(cache.views)):
            rows, labels, partners, shares, pixels = [], [], [], [], hashlib.sha256()
            sets = []
            for shown, targets in batches.epoch(epoch):
                rows.append(targets.rows.numpy())
                labels.append(targets.labels.numpy())
                sets += [] if targets.label_sets is None else [targets.label_sets.numpy()]
                if targets.partner_labels is not None and targets.lam is not None:
                    partners.append(targets.partner_labels.numpy())
                    shares.append(targets.lam.numpy())
                pixels.update(np.ascontiguousarray(shown.numpy()).tobytes())
            found[f"epoch|{epoch}|rows"] = np.concatenate(rows)
            found[f"epoch|{epoch}|labels"] = np.concatenate(labels)
            found[f"epoch|{epoch}|pixels"] = np.array(pixels.hexdigest())
            if sets:
                found[f"epoch|{epoch}|label_sets"] = np.concatenate(sets)
            if partners:
                found[f"epoch|{epoch}|partner_labels"] = np.concatenate(partners)
                found[f"epoch|{epoch}|lam"] = np.concatenate(shares)
    return found


def make_encodings() -> None:
    """Write the cache of every encoding."""
    eval_view = {"count": 0, "eval": True}
    done: dict[str, Any] = {}
    for name, encoding in ENCODINGS.items():
        done[name] = teacher("cnn")
        build_cache(config_of({name: done[name]}, eval_view, encoding))
    write_images(Path("images"), more=True, bad=True)
    _add_images(eval_view)
    withdraw_images("cache", ["class-c/001.png", "class-a/004.png"], "golden")


def _add_images(views: dict[str, Any]) -> None:
    """Compute the second segment for all teachers; the last run seals."""
    for name, encoding in ENCODINGS.items():
        with contextlib.suppress(CacheUnsealed):  # others are still missing
            build_cache(config_of({name: teacher("cnn")}, views, encoding))


def make_features() -> None:
    """Write the cache of every kind of stored feature."""
    teachers = {name: teacher(name, features=FEATURES[name]) for name in NETWORKS}
    build_cache(config_of(teachers, {"count": 1}, {"kind": "dense", "dense_values": "uint8"}))


def make_views() -> None:
    """Write the cache of every operation."""
    for views in VIEWS:
        encoding = {"kind": "dense", "dense_values": "uint8", "lse": False}
        build_cache(config_of({"cnn": teacher("cnn")}, views, encoding))


def make_packed() -> None:
    """Write a cache with its images."""
    views = {"count": 2, "mixup_alpha": 0.5}
    config = config_of({"cnn": teacher("cnn")}, views, {"top_k": 3})
    images = ImagesConfig.parse("packed:8", "images")
    build_cache(config.model_copy(update={"images": images}))


def make_unsealed() -> None:
    """Write what is left of a run that was stopped after some units."""
    teachers = {name: teacher(name) for name in NETWORKS}
    requested = config_of(teachers, {"count": 2, "mixup_alpha": 0.5}, {"top_k": 5})
    calls = iter(range(1000))
    with contextlib.suppress(Interrupted):
        build_cache(requested, should_stop=lambda: next(calls) > 13)


def make_odd() -> None:
    """Write a cache of odd files; ``expected`` renders them as the table of then decodes them."""
    write_odd_images(Path("images"))
    teachers = {"cnn": teacher("cnn", class_map=[3, 7])}
    views = {"count": 1, "eval": True}
    build_cache(config_of(teachers, views, {"kind": "dense", "dense_values": "uint8"}))


def write_odd_images(root: Path) -> None:
    """Write the odd files that 0.1 lists, in a folder for each ending."""
    shutil.rmtree(root)
    for name, content in read_files().items():
        kind = name.rpartition(".")[2]
        if kind in {"jpg", "png"}:
            (root / kind).mkdir(parents=True, exist_ok=True)
            (root / kind / name).write_bytes(content)


def make_label_sets() -> None:
    """Write a cache of images with 0 to 4 classes, some without labels."""
    paths = sorted(Path("images").rglob("*.png"))
    lines = []
    for number, path in enumerate(paths):
        several = [CLASSES[(number + step * step) % 12] for step in range(number % 5)]
        label = None if number % 7 == 3 else several
        lines.append({"path": path.relative_to("images").as_posix(), "label": label})
    Path("sets.jsonl").write_text("\n".join(map(json.dumps, lines)))
    views = {"count": 1, "mixup_alpha": 0.8, "eval": True}
    encoding = {"kind": "dense", "dense_values": "uint8"}
    config = config_of({"cnn": teacher("cnn")}, views, encoding)
    data = DataConfig(name="sets.jsonl", root="images")
    build_cache(config.model_copy(update={"data": data}))


def make_sigmoid() -> None:
    """Write a cache of log-odds as float16 and as bytes."""
    for name, values in (("half", "float16"), ("byte", "uint8")):
        teachers = {name: teacher("cnn", head="sigmoid")}
        build_cache(config_of(teachers, {"count": 1}, {"dense_values": values}))


def make_wide() -> None:
    """Write a cache of 70 000 classes out of numbers."""
    rows, classes = 20, 70_000
    grid = np.arange(rows)[:, None] * 7919 + np.arange(classes)
    logits = ((grid * 2654435761 % 2**32) / 2**28).astype(np.float32)
    make_cache(Path("cache"), {"wide": (SparseEncoding(classes, 6), logits)}, rows, (4,))


def transform_logits() -> NDArray[np.float32]:
    """Return logits (40, 60) of a few directions, out of integers."""
    rows, classes, directions = 40, 60, 7
    codes = (np.arange(rows * directions).reshape(rows, directions) * 7919 % 1009) / 1009 - 0.5
    vectors = (np.arange(directions * classes).reshape(directions, classes) * 104729 % 997) / 997
    noise = (np.arange(rows * classes).reshape(rows, classes) * 2654435761 % 2**32) / 2**32
    return (20 * codes @ (vectors - 0.5) + noise).astype(np.float32)


def make_transform() -> None:
    """Write a cache of the transform encoding out of numbers."""
    logits = transform_logits()
    principal = principal_directions(log_softmax(logits)[0])
    encoding = TransformEncoding.of(Basis.of(principal, step=0.5), refined=11)
    make_cache(Path("cache"), {"t": (encoding, logits)}, len(logits), (4,))


WITHOUT_IMAGES = {"transform", "wide"}
MAKERS = {
    "encodings": make_encodings,
    "features": make_features,
    "views": make_views,
    "packed": make_packed,
    "unsealed": make_unsealed,
    "wide": make_wide,
    "transform": make_transform,
    "odd": make_odd,
    "label_sets": make_label_sets,
    "sigmoid": make_sigmoid,
}


def pack(folder: Path, path: Path) -> None:
    """Write a folder as a tar file without owners and times."""
    with tarfile.open(path, "w:xz", preset=9) as tar:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                info = tarfile.TarInfo(file.relative_to(folder).as_posix())
                info.size = file.stat().st_size
                tar.addfile(info, io.BytesIO(file.read_bytes()))


def unpack(path: Path, folder: Path) -> Path:
    """Extract a golden cache."""
    with tarfile.open(path) as tar:
        tar.extractall(folder, filter="data")
    return folder


def main(version: str, *names: str) -> None:
    """Write golden caches of the version that is running, all by default."""
    torch.set_num_threads(1)
    target = HERE / version
    target.mkdir(parents=True, exist_ok=bool(names))
    for name, make in MAKERS.items():
        if names and name not in names:
            continue
        with (
            tempfile.TemporaryDirectory() as folder,
            workplace(Path(folder), **IMAGES.get(name, {})),
        ):
            make()
            pack(Path("cache"), target / f"{name}.tar.xz")
            if name != "unsealed":
                images = None if name in WITHOUT_IMAGES else "images"
                found = expected(open_cache("cache"), images=images)
                np.savez_compressed(target / f"{name}.npz", **found)
        print(name, (target / f"{name}.tar.xz").stat().st_size)


if __name__ == "__main__":
    main(*sys.argv[1:])
