"""A student in another environment, which has the URL of a cache and nothing else.

Started as a script, ``python -m tests.matrix.url_alone PYTHON`` computes caches with images and
with stored views, trains from them here, serves them with a latency of 30 ms, and trains from the
URL with the other interpreter, in empty folders. It prints versions, seconds to the first step and
digests, and fails where losses or weights differ, where the other environment has the same Pillow
or another torch, or where the first step takes ten seconds of which more than half are the
processor's: on a machine with other work, waiting for it does not count.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

__all__ = ["FORMS", "compare", "train"]

ROOT = Path(__file__).parents[2]
FORMS = ("packed:24", "views")
VIEWS = {"count": 2, "auto_augment": "rand-m9-mstd0.5-inc1", "mixup_alpha": 0.2}
KWARGS: dict[str, Any] = {"channels": [16] * 4, "stem_width": 16}
STUDENT = {"model": "resnet10t", "kwargs": KWARGS, "size": 8}
LATENCY, MOST_SECONDS = 0.03, 10.0


def train(url: str, out: str) -> dict[str, Any]:
    """Make the first step from a cache, then train a student from it alone; describe both."""
    import psutil

    started = psutil.Process().create_time()
    import timm
    import torch

    import logitcache
    from logitcache.configs import TrainConfig

    torch.set_num_threads(1)
    network = timm.create_model("resnet10t", num_classes=3, **KWARGS)
    soft: Any = logitcache.Soft()
    with logitcache.loader(logitcache.open_cache(url), batch_size=16, size=8) as batches:
        images, targets = next(iter(batches))
        soft(network(images), targets).backward()
    first, used = time.time() - started, time.process_time()
    values = {"out": out, "cache": url, "student": STUDENT, "epochs": 2, "batch_size": 16}
    logitcache.train_student(TrainConfig.parse({**values, "threads": 1, "device": "cpu"}, ""))
    journal = (Path(out) / "journal.jsonl").read_text().splitlines()
    weights = (Path(out) / "export" / "model.safetensors").read_bytes()
    return {
        "pillow": version("pillow"),
        "torch": version("torch"),
        "first step": first,
        "processor": used,
        "losses": [e["loss"] for e in map(json.loads, journal) if e["event"] == "epoch"],
        "weights": hashlib.sha256(weights).hexdigest(),
    }


def compare(python: str, folder: Path) -> list[str]:
    """Return what differs between this environment and another one; print what was measured."""
    from logitcache.precompute.build import build_cache
    from logitcache.precompute.config import PrecomputeConfig
    from tests.conftest import write_images, write_teacher
    from tests.remote.servers import Behavior, FaultyServer, from_folder

    images = write_images(folder / "images", 100)
    teacher = write_teacher(folder / "teacher", classes=3, model="cnn")
    faults = []
    for form in FORMS:
        name = form.partition(":")[0]
        values = {
            "cache": str(folder / "served" / name),
            "data": str(images),
            "teachers": {"cnn": {"model": f"local-dir:{teacher}"}},
            "views": VIEWS,
            "images": form,
            "min_accuracy": 0,
        }
        build_cache(PrecomputeConfig.parse(values, ""))
    with FaultyServer(from_folder(folder / "served"), Behavior(latency=LATENCY)) as web:
        for form in FORMS:
            name = form.partition(":")[0]
            here = _child(sys.executable, str(folder / "served" / name), folder / f"{name}-here")
            there = _child(python, f"{web.url}/{name}", folder / f"{name}-there")
            for where, found in {"here": here, "there": there}.items():
                print(f"{name}, {where}: {json.dumps(found)}", flush=True)
            faults += [f"{name}: {fault}" for fault in _faults(here, there)]
    return faults


def _faults(here: dict[str, Any], there: dict[str, Any]) -> list[str]:
    found = [
        f"other {what}" for what in ("losses", "weights", "torch") if here[what] != there[what]
    ]
    found += ["the same Pillow"] if here["pillow"] == there["pillow"] else []
    late = min(there["first step"], 2 * there["processor"]) >= MOST_SECONDS
    return [*found, *([f"first step after {there['first step']:.1f} s"] if late else [])]


def _child(python: str, url: str, out: Path) -> dict[str, Any]:
    """Train in a process of an interpreter, with empty folders of the user."""
    empty = out.with_name(f"{out.name}-user")
    empty.mkdir()
    user = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "HF_HOME", "TORCH_HOME"), str(empty))
    done = subprocess.run(
        [python, "-m", "tests.matrix.url_alone", "train", url, str(out)],
        env={**os.environ, **user, "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    if sys.argv[1] == "train":
        print(json.dumps(train(*sys.argv[2:])))
        return
    with tempfile.TemporaryDirectory() as folder:
        faults = compare(sys.argv[1], Path(folder))
    print("\n".join(faults) or "the same losses and weights")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
