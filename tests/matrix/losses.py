"""Losses of training runs from the golden caches, with the code of an older commit and of this one.

``python -m tests.matrix.losses CHECKOUT`` trains the same students on one machine with both, where
``CHECKOUT`` is a folder with the older commit (``git worktree add CHECKOUT COMMIT``). It prints the
largest relative difference of the first 50 losses of every run, and exits with 1 above 1e-6.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.golden.caches_of import HERE, unpack, workplace

__all__ = ["RUNS", "losses", "main"]

ROOT = Path(__file__).parents[2]
STEPS = 50
LARGEST = 1e-6
VIT = {
    "model": "vit_tiny_patch16_224",
    "kwargs": {"img_size": 16, "patch_size": 4, "embed_dim": 12, "depth": 1, "num_heads": 2},
}
CNN = {"model": "resnet10t", "kwargs": {"channels": [8] * 4, "stem_width": 8}, "size": 16}
IMAGES: dict[str, dict[str, Any]] = {
    "encodings": {"more": True, "bad": True},
    "features": {},
    "views": {"per_class": 1},
}
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "soft": ("encodings", {"objectives": ["soft", {"label": {"weight": 0.5}}]}),
    "soft, T = 4, top K": (
        "encodings",
        {"objectives": [{"soft": {"temperature": 4.0, "teachers": {"codes-5": 1.0}}}]},
    ),
    "nkd": ("encodings", {"objectives": [{"split": {"teachers": {"codes-8": 1.0}}}]}),
    "match and relation": (
        "features",
        {
            "student": VIT,
            "objectives": [
                {"match": {"teacher": "vit", "tap": "blocks.0", "student": "blocks.0"}},
                {
                    "relation": {
                        "teacher": "cnn",
                        "tap": "pre_logits",
                        "student": "pre_logits",
                        "form": "distance",
                    }
                },
            ],
        },
    ),
    "mixed views": ("views", {"student": {**CNN, "size": 8}, "objectives": ["soft"], "ema": 0.9}),
}
"""Golden caches and settings of the runs."""

_CHILD = """
import json, sys
import torch
torch.set_num_threads(1)
from logitcache import TrainConfig, train_student
from logitcache.training.run.state import RunState
losses, count = [], RunState.count
def counting(self, parts):
    losses.append(float(parts["loss"].detach()))
    count(self, parts)
RunState.count = counting
train_student(TrainConfig.parse(json.loads(sys.argv[1]), "train"))
print(json.dumps([loss.hex() for loss in losses]))
"""


def losses(code: Path, values: dict[str, Any]) -> list[float]:
    """Train with the code in a folder and return the loss of every step."""
    environment = {**os.environ, "PYTHONPATH": str(code), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", _CHILD, json.dumps(values)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    if done.returncode:
        raise RuntimeError(f"the run with {code} failed:\n{done.stderr[-3000:]}")
    return [float.fromhex(loss) for loss in json.loads(done.stdout.splitlines()[-1])]


def main() -> int:
    """Compare all runs and return an exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkout", type=Path, help="folder with the older commit")
    old = parser.parse_args().checkout.resolve()
    worst = 0.0
    for name, (golden, settings) in RUNS.items():
        with tempfile.TemporaryDirectory() as folder, workplace(Path(folder), **IMAGES[golden]):
            unpack(HERE / "0.1" / f"{golden}.tar.xz", Path("cache"))
            values = {
                "data": "images",
                "cache": "cache",
                "student": CNN,
                "steps": STEPS,
                "batch_size": 8,
                "device": "cpu",
                "threads": 1,
                **settings,
            }
            before, after = (
                losses(code, {**values, "out": out}) for code, out in ((old, "a"), (ROOT, "b"))
            )
        assert len(before) == len(after) == STEPS, (len(before), len(after))
        largest = max(abs(a - b) / max(abs(a), 1e-30) for a, b in zip(before, after, strict=True))
        equal = sum(a == b for a, b in zip(before, after, strict=True))
        worst = max(worst, largest)
        print(
            f"{name}: {equal} of {STEPS} losses equal bit for bit, largest relative difference "
            f"{largest:.1e}; first {after[0]:.6f}, last {after[-1]:.6f}"
        )
    return int(worst > LARGEST)


if __name__ == "__main__":
    sys.exit(main())
