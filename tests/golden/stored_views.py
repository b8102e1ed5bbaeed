"""Golden vectors of stored views: encoded squares, and what is made of them.

``python -m tests.golden.stored_views`` adds those of the libraries that are installed to
``stored-views.json``, if no vectors are listed for these versions.
"""

from __future__ import annotations

import base64
import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from logitcache.data.packing import encode_jpeg
from logitcache.views.golden import synthetic_image
from logitcache.views.operations import (
    HorizontalFlip,
    LowRes,
    Mask,
    Mixing,
    RandomErasing,
    RandomResizedCrop,
    Rot90,
)
from logitcache.views.render import BatchRequest, ViewRenderer
from logitcache.views.spec import View
from logitcache.views.stored import SquareNumbers, stored_part, stored_under

PATH = Path(__file__).parent / "stored-views.json"
LIBRARIES = ("pillow", "simplejpeg", "torch")
QUALITY = 92

_CROP = RandomResizedCrop((0.08, 1.0), (3 / 4, 4 / 3))
_PLAIN = View((_CROP, HorizontalFlip(0.5)), draw=1)
_MIXED = View((_CROP, Mixing(0.8, 1.0, None, 1.0, 0.5)), seed=3, draw=2)
VIEWS = (
    _PLAIN,
    _PLAIN.derived(Rot90(1)),
    _PLAIN.derived(Mask(0.5, 4)).derived(LowRes(2.0)),
    View((_CROP, RandomErasing(p=1.0, mode="rand")), draw=3),
    _MIXED,
    _MIXED.derived(Rot90(3)),
)
HASHES = (0x0123456789ABCDEF, 0xFEDCBA9876543210)
"""Of an image and of its partner; the first has 70 x 100 pixels, the second 41 x 33."""
IMAGES = ((70, 100), (41, 33))
SIZES = (32, 80)
"""With a color resolution of 4:4:4, and of 4:2:0."""


def squares(view: View, size: int) -> list[bytes]:
    """Return the encoded squares of both images."""
    part = stored_part(view)
    request = BatchRequest(part, np.arange(2), np.array(HASHES, dtype=np.uint64))
    images = [synthetic_image(*shape) for shape in IMAGES]
    with ViewRenderer(images.__getitem__, [size], threads=1) as renderer:
        (batch,) = renderer.batches([request])
    pixels = batch.pixels[size].transpose(0, 2, 3, 1)
    return [encode_jpeg(np.ascontiguousarray(one), QUALITY) for one in pixels]


def finished(view: View, size: int, encoded: list[bytes]) -> str:
    """Return the sha256 of the first image's final square, of encoded squares alone."""
    numbers = SquareNumbers((stored_under(view),), 2)
    mixes = view.mixing is not None
    request = BatchRequest(
        view,
        np.array([0]),
        np.array(HASHES[:1], dtype=np.uint64),
        partners=np.array([1]) if mixes else None,
        partner_hashes=np.array(HASHES[1:], dtype=np.uint64) if mixes else None,
    )
    with ViewRenderer(encoded.__getitem__, [size], threads=1) as renderer:
        (batch,) = renderer.batches([numbers.request(request)])
    return hashlib.sha256(batch.pixels[size].tobytes()).hexdigest()


def vectors() -> list[dict[str, Any]]:
    """Compute all vectors."""
    return [
        {
            "view": view.to_json(),
            "stored_under": stored_under(view),
            "size": size,
            "jpeg": [base64.b64encode(one).decode() for one in squares(view, size)],
            "sha256": finished(view, size, squares(view, size)),
        }
        for view in VIEWS
        for size in SIZES
    ]


def versions() -> dict[str, str]:
    """Return the versions of the libraries of this machine."""
    return {name: version(name) for name in LIBRARIES}


if __name__ == "__main__":
    listed = json.loads(PATH.read_text()) if PATH.exists() else []
    if all(entry["versions"] != versions() for entry in listed):
        listed.append({"versions": versions(), "vectors": vectors()})
        PATH.write_text(json.dumps(listed, indent=1) + "\n")
