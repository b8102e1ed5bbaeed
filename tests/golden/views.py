"""Golden vectors of the view algorithm: recipes, words, parameters and pixels that never change.

``python -m tests.golden.views`` writes ``views-1.json``. It is written once per version of the
algorithm; a difference is a broken promise, not a reason to write it again.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from logitcache.data.decode import decode
from logitcache.data.identity import key_hash
from logitcache.draws import Purpose, words
from logitcache.views.algorithm import parameters, view_floats
from logitcache.views.golden import synthetic_image
from logitcache.views.operations import CentralCrop, HorizontalFlip, RandomResizedCrop
from logitcache.views.parameters import Box
from logitcache.views.render import render
from logitcache.views.spec import View

PATH = Path(__file__).parent / "views-1.json"

VIEWS = (
    View((RandomResizedCrop((0.08, 1.0), (3 / 4, 4 / 3)), HorizontalFlip(0.5)), seed=0, draw=1),
    View((RandomResizedCrop((0.08, 1.0), (3 / 4, 4 / 3)), HorizontalFlip(0.5)), seed=0, draw=2),
    View((RandomResizedCrop((0.5, 0.9), (0.2, 7.0)),), seed=2**64 - 1, draw=2**32 - 1),
    View((RandomResizedCrop((1.0, 1.0), (2.0, 3.0)), HorizontalFlip(1.0)), seed=7, draw=3),
    View((CentralCrop(0.875),)),
    View((CentralCrop(1.0),), interpolation="bilinear"),
)
KEYS = ("cat/000.jpg", "train/000000017", "Straße/ü.png")
SIDES = ((40, 30), (31, 97), (8, 8), (300, 200))
SIZES = (16, 33)


def vectors() -> list[dict[str, Any]]:
    """Compute all vectors."""
    return [
        _vector(view, key, height, width)
        for view in VIEWS
        for key in KEYS
        for height, width in SIDES
    ]


def _vector(view: View, key: str, height: int, width: int) -> dict[str, Any]:
    hash_ = key_hash(key)
    drawn = [row[0].tolist() for row in view_floats(view, np.array([hash_], dtype=np.uint64))]
    how = parameters(view, drawn, height, width)
    image = decode(synthetic_image(height, width))
    first = words(view.seed, [hash_], draw=view.draw, purpose=Purpose.CROP, count=4)[0]
    crop = how.crop
    box = [crop.top, crop.left, crop.height, crop.width] if isinstance(crop, Box) else None
    pixels = {
        str(size): hashlib.sha256(
            np.ascontiguousarray(render(image, how, size, view.interpolation).numpy()).tobytes()
        ).hexdigest()
        for size in SIZES
    }
    return {
        "view": view.to_json(),
        "id": view.id,
        "key": key,
        "hash": f"{hash_:016x}",
        "height": height,
        "width": width,
        "crop_words": [f"{int(word):016x}" for word in first],
        "box": box,
        "flip": how.flip,
        "sha256": pixels,
    }


if __name__ == "__main__":
    PATH.write_text(json.dumps(vectors(), indent=1, ensure_ascii=False) + "\n")
