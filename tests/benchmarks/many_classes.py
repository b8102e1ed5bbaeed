"""Make a task of many classes out of an image folder: class x 4 rotations x 3 hues.

Ten classes never touch top-K. Every image is turned and tinted once, which one by the hash of its
name, and lands in the folder ``<class>-<rotation>-<hue>``, so CIFAR-10 becomes 120 classes::

    python -m tests.benchmarks.many_classes cifar10/train cifar120/train

A horizontal flip would turn one rotation into another; pipelines over this task do without.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from logitcache.data.identity import key_hash
from logitcache.data.readers import open_source

_ROTATIONS = (
    None,
    Image.Transpose.ROTATE_90,
    Image.Transpose.ROTATE_180,
    Image.Transpose.ROTATE_270,
)
_HUES = 3


def turned_and_tinted(image: Image.Image, rotation: int, hue: int) -> Image.Image:
    """Return the image turned by rotation * 90 degrees, its hue moved by hue * 120 degrees."""
    transpose = _ROTATIONS[rotation]
    turned = image if transpose is None else image.transpose(transpose)
    h, s, v = turned.convert("HSV").split()
    moved = h.point([(value + hue * 256 // _HUES) % 256 for value in range(256)])
    return Image.merge("HSV", (moved, s, v)).convert("RGB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="image folder with one folder per class")
    parser.add_argument("target", type=Path, help="folder to write")
    arguments = parser.parse_args()
    source = open_source(str(arguments.source))
    for key in source.keys:
        rotation, hue = key_hash(key) % 4, key_hash(key) // 4 % _HUES
        label, _, name = key.rpartition("/")
        folder = arguments.target / f"{label}-{rotation}-{hue}"
        folder.mkdir(parents=True, exist_ok=True)
        with Image.open(arguments.source / key) as image:
            made = turned_and_tinted(image.convert("RGB"), rotation, hue)
        made.save(folder / Path(name).with_suffix(".jpg"), quality=95)
    print(f"{len(source.keys)} images in {arguments.target}")


if __name__ == "__main__":
    main()
