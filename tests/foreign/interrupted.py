"""A training script whose steps are recorded, and which is killed at one of them.

Started by torchrun as ``-m tests.foreign.interrupted SCRIPT``, or by :func:`run_script` in a
process that exists. Each process appends the rows and the loss of every call of ``logitcache.Soft``
to ``steps-R.jsonl`` in the folder of the script. With the environment variable ``KILL_AT``, process
0 kills itself in that step.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import logitcache

if TYPE_CHECKING:
    from logitcache.batch import TargetBatch


def record(rank: int, kill_at: int | None) -> None:
    """Replace the objective by one that records its calls."""
    original = logitcache.Soft.__call__
    path = Path(f"steps-{rank}.jsonl").absolute()
    steps = 0

    def recorded(self: logitcache.Soft, outputs: Any, targets: TargetBatch) -> torch.Tensor:
        nonlocal steps
        steps += 1
        loss = original(self, outputs, targets)
        if steps == kill_at and rank == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        line = {"rows": targets.rows.tolist(), "loss": loss.item()}
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        return loss

    logitcache.Soft.__call__ = recorded  # type: ignore[method-assign]


def run_script(rank: int, script: str, kill_at: int | None) -> None:
    """Run a script in its folder, in a process that ends afterwards."""
    os.environ["ACCELERATE_USE_CPU"] = "true"
    os.chdir(Path(script).parent)
    torch.set_num_threads(1)
    torch.manual_seed(0)  # every script starts with the same weights
    record(rank, kill_at)
    sys.argv = [script]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    step = os.environ.get("KILL_AT")
    run_script(int(os.environ.get("RANK", "0")), sys.argv[1], int(step) if step else None)
