"""Golden vectors of everything beyond crop and flip: policies, mixtures, derived and eval views.

``python -m tests.golden.policies`` writes ``policies-1.json``. It is written once per version of
the algorithm; a difference is a broken promise, not a reason to write it again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from logitcache.data.identity import key_hash
from logitcache.views.golden import Example, vector
from logitcache.views.operations import RandAugment, RandomResizedCrop
from logitcache.views.randaugment import LEVELS
from logitcache.views.spec import View, ViewsConfig

PATH = Path(__file__).parent / "policies-1.json"
KEYS = (("cat/000.jpg", 40, 30), ("Straße/ü.png", 300, 200))
PARTNERS = (("train/000000017", 31, 97), ("dog/1.jpg", 64, 64))
SIZES = (16, 33)
NOISE_SIZE = 33

CONFIGS: tuple[dict[str, Any], ...] = (
    {"vflip": 0.5, "hflip": 0.5},
    {"auto_augment": "rand-m9-mstd0.5-inc1"},
    {"auto_augment": "rand-m9-n4-p1.0-mstd1.5-mmax12", "interpolation": "bilinear"},
    {"auto_augment": "rand-m7-n3-p0.8-mstd101-inc1"},
    {"auto_augment": "rand-m6-n3-p1.0-tweights"},
    {"auto_augment": "rand-m6-n3-p1.0-t3aw"},
    {"auto_augment": "rand-n2-p1.0-t3a", "color_jitter": 0.3},
    {"color_jitter": (0.4, 0.4, 0.4, 0.1), "color_jitter_prob": 0.8, "grayscale_prob": 0.5},
    {"gaussian_blur_prob": 1.0},
    {"re_prob": 1.0, "re_count": 3},
    {"re_prob": 1.0, "re_mode": "rand"},
    {"re_prob": 1.0, "re_mode": "pixel", "re_size": NOISE_SIZE},
    {"mixup_alpha": 0.2},
    {"mixup_alpha": 4.0, "derive": ["rot90(3)", "lowres(2.5)", "mask(0.6, 5)"]},
    {"cutmix_alpha": 1.0, "mix_prob": 0.8},
    {"cutmix_minmax": (0.2, 0.8), "mixup_alpha": 1.0, "switch_prob": 0.7},
    {
        "auto_augment": "rand-m9-mstd0.5-inc1",
        "re_prob": 0.25,
        "mixup_alpha": 0.8,
        "cutmix_alpha": 1.0,
        "seed": 2**64 - 1,
        "derive": ["mask(0.75)"],
    },
)
EVALS = (("squash", 0.875), ("border", 0.9), ("border", 1.0), ("center", 0.95))


def views() -> list[View]:
    """Return every view there is a vector of."""
    found = [view for config in CONFIGS for view in _config(config).views()]
    found += [
        ViewsConfig.model_validate({"crop_mode": mode, "crop_pct": share}).eval_view()
        for mode, share in EVALS
    ]
    return found + [_alone(name, draw) for draw, name in enumerate(LEVELS, start=1)]


def _config(values: dict[str, Any]) -> ViewsConfig:
    return ViewsConfig.model_validate({"count": 2, **values})


def _alone(name: Any, draw: int) -> View:
    """Return a view with one of RandAugment's operations, always applied."""
    operation = RandAugment((name,), None, 1, 7.0, 1.0, 10.0, 1.0)
    return View((RandomResizedCrop((0.3, 1.0), (0.75, 1.25)), operation), seed=1, draw=draw)


def vectors() -> list[dict[str, Any]]:
    """Compute all vectors."""
    return [
        _vector(view, *key, partner)
        for view in views()
        for key, partner in zip(KEYS, PARTNERS, strict=True)
    ]


def _vector(
    view: View, key: str, height: int, width: int, partner: tuple[str, int, int]
) -> dict[str, Any]:
    image = Example(key_hash(key), height, width)
    other = Example(key_hash(partner[0]), *partner[1:]) if view.mixing else None
    noisy = "noise" in json.dumps(vector(view, image, other, [NOISE_SIZE])["parameters"])
    computed = vector(view, image, other, [NOISE_SIZE] if noisy else SIZES)
    return {
        "view": view.to_json(),
        "id": view.id,
        "key": key,
        "hash": f"{image.hash:016x}",
        "height": height,
        "width": width,
        "partner": None
        if other is None
        else {
            "key": partner[0],
            "hash": f"{other.hash:016x}",
            "height": other.height,
            "width": other.width,
        },
        **computed,
    }


if __name__ == "__main__":
    lines = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in vectors())
    PATH.write_text(f"[\n{lines}\n]\n")
