"""Where a run stands, as tensors and JSON: no pickle, written whole or not at all.

A checkpoint holds all that the next step depends on, so that a resumed run ends with the very
weights of an uninterrupted one.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from logitcache.errors import StorageError
from logitcache.files import write_file
from logitcache.platforms import sync_folder

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

__all__ = [
    "Checkpoint",
    "join_random_states",
    "latest_checkpoint",
    "random_state",
    "read_checkpoint",
    "set_random_state",
    "write_checkpoint",
]

_FOLDER = "checkpoints"
_TENSORS = "tensors.safetensors"
_STATE = "state.json"
_KEEP = 2


@dataclass(frozen=True)
class Checkpoint:
    """Where a run stands.

    Attributes:
        position: Numbers such as step, epoch and batch.
        config: The configuration of the run, as JSON values.
        modules: State dicts by name: the model, its average.
        optimizer: State dict of the optimizer.
        random: States of torch's generators by device, those of further processes with their rank
            behind: ``cpu``, ``cpu.1``.
    """

    position: dict[str, Any]
    config: dict[str, Any]
    modules: dict[str, dict[str, Tensor]]
    optimizer: dict[str, Any]
    random: dict[str, Tensor]


def random_state() -> dict[str, Tensor]:
    """Return the states of this process's generators, by device."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def join_random_states(by_rank: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the states of all processes as a checkpoint has them."""
    return {
        f"{device}.{rank}" if rank else device: state
        for rank, states in enumerate(by_rank)
        for device, state in states.items()
    }


def set_random_state(random: Mapping[str, Tensor], rank: int) -> None:
    """Set this process's generators to where they were; a rank that is new keeps its own."""
    suffix = f".{rank}" if rank else ""
    if f"cpu{suffix}" in random:
        torch.set_rng_state(random[f"cpu{suffix}"])
    if f"cuda{suffix}" in random and torch.cuda.is_available():
        torch.cuda.set_rng_state(random[f"cuda{suffix}"])


def write_checkpoint(out: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint and remove all but the last two.

    Raises:
        StorageError: The disk refused; earlier checkpoints are intact.
    """
    folder = out / _FOLDER
    target = folder / f"{checkpoint.position['step']:09d}"
    temporary = target.with_suffix(".partial")
    tensors, state = _flatten(checkpoint)
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        save_file(tensors, temporary / _TENSORS)
        _sync_file(temporary / _TENSORS)
        write_file(temporary / _STATE, json.dumps(state))
        if target.exists():
            shutil.rmtree(target)
        temporary.rename(target)
        sync_folder(folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise StorageError(
            "a checkpoint cannot be written",
            where=target,
            got=error.strerror or error,
            hint="make room and run the same command with --resume",
        ) from error
    for old in _checkpoints(out)[:-_KEEP]:
        shutil.rmtree(old)


def latest_checkpoint(out: Path) -> Path | None:
    """Return the folder of the last checkpoint of a run, None before the first."""
    found = _checkpoints(out)
    return found[-1] if found else None


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint."""
    state = json.loads((folder / _STATE).read_text())
    tensors = load_file(folder / _TENSORS)
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        part, _, rest = name.partition("/")
        parts.setdefault(part, {})[rest] = tensor
    optimizer_state: dict[int, dict[str, Any]] = {
        int(index): dict(values) for index, values in state["optimizer"]["state"].items()
    }
    for name, tensor in parts.pop("optimizer", {}).items():
        index, _, key = name.partition("/")
        optimizer_state.setdefault(int(index), {})[key] = tensor
    return Checkpoint(
        position=state["position"],
        config=state["config"],
        random=parts.pop("random"),
        optimizer={"state": optimizer_state, "param_groups": state["optimizer"]["param_groups"]},
        modules=parts,
    )


def _flatten(checkpoint: Checkpoint) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split a checkpoint into tensors by path and JSON values."""
    tensors: dict[str, Tensor] = {}
    for part, state_dict in {**checkpoint.modules, "random": checkpoint.random}.items():
        tensors |= {f"{part}/{name}": tensor for name, tensor in state_dict.items()}
    plain: dict[str, dict[str, Any]] = {}
    for index, values in checkpoint.optimizer["state"].items():
        plain[str(index)] = {}
        for key, value in values.items():
            if isinstance(value, torch.Tensor):
                tensors[f"optimizer/{index}/{key}"] = value
            else:
                plain[str(index)][key] = value
    optimizer = {"state": plain, "param_groups": checkpoint.optimizer["param_groups"]}
    state = {
        "position": checkpoint.position,
        "config": checkpoint.config,
        "optimizer": optimizer,
    }
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, state


def _sync_file(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _checkpoints(out: Path) -> list[Path]:
    return sorted(path for path in (out / _FOLDER).glob("*") if path.name.isdecimal())
