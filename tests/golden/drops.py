"""Golden vectors of views that drop patches.

``python -m tests.golden.drops`` writes ``drops-1.json``. It is written once; a difference is a
broken promise, not a reason to write it again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from logitcache.data.identity import key_hash
from logitcache.views.golden import Example, vector
from logitcache.views.spec import View, ViewsConfig

PATH = Path(__file__).parent / "drops-1.json"
DIGEST = "0c986ac2726e1c68"
KEYS = (("cat/000.jpg", 40, 30), ("Straße/ü.png", 300, 200))
PARTNER = ("dog/1.jpg", 64, 64)
SIZE = 16

CONFIGS: tuple[dict[str, Any], ...] = (
    {"patch_drop_rate": 0.75, "patch_drop_grid": 14, "mixup_alpha": 0.8},
    {"patch_drop_rate": 0.98, "patch_drop_grid": 7, "seed": 2**64 - 1},
    {"patch_drop_rate": 0.001, "patch_drop_grid": 2, "derive": ["rot90(1)"]},
)


def views() -> list[View]:
    """Return every view there is a vector of."""
    return [view for config in CONFIGS for view in ViewsConfig.model_validate(config).views()]


def vectors() -> list[dict[str, Any]]:
    """Compute all vectors."""
    return [_vector(view, *key) for view in views() for key in KEYS]


def _vector(view: View, key: str, height: int, width: int) -> dict[str, Any]:
    image = Example(key_hash(key), height, width)
    mixed = view.mixing is not None
    other = Example(key_hash(PARTNER[0]), *PARTNER[1:]) if mixed else None
    partner = {"key": PARTNER[0], "height": PARTNER[1], "width": PARTNER[2]}
    return {
        "view": view.to_json(),
        "id": view.id,
        "key": key,
        "hash": f"{image.hash:016x}",
        "height": height,
        "width": width,
        "partner": None if other is None else {**partner, "hash": f"{other.hash:016x}"},
        **vector(view, image, other, [SIZE]),
    }


if __name__ == "__main__":
    lines = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in vectors())
    PATH.write_text(f"[\n{lines}\n]\n")
