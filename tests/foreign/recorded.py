"""A command of logitcache, with a record of the images that networks in training are called with.

Started as ``python -m tests.foreign.recorded OUT ARGUMENTS...``. Each process appends a line for
each call to ``OUT/rank-R.jsonl``: the class of the network, and the sha256 of every image; and a
line for each fork of it to ``OUT/forks.txt``, which may copy a lock that a thread has.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.nn.modules.module import register_module_forward_pre_hook

from logitcache.cli.app import main

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["digests"]

NETWORKS = {"ResNet", "TimmTeacher"}


def digests(images: Tensor) -> list[str]:
    """Return the sha256 of the values of every image."""
    return [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in images.detach()]


def record(path: Path) -> None:
    """Record every call of a student in training, and of its teacher, from now on."""

    def before(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        name = type(module).__name__
        if name in NETWORKS and (module.training or name == "TimmTeacher"):
            with path.open("a") as file:
                file.write(json.dumps({"network": name, "images": digests(inputs[0])}) + "\n")

    register_module_forward_pre_hook(before)


def record_forks(path: Path) -> None:
    """Record every fork of this process from now on."""

    def before() -> None:
        with path.open("a") as file:
            names = [thread.name for thread in threading.enumerate()]
            file.write(f"{os.getpid()}: {', '.join(names)}\n")

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=before)


if __name__ == "__main__":
    folder, sys.argv[1:] = Path(sys.argv[1]), sys.argv[2:]
    record(folder / f"rank-{os.environ.get('RANK', '0')}.jsonl")
    record_forks(folder / "forks.txt")
    main()
