"""Checkpoints as tensors and JSON, written atomically.

A checkpoint contains everything that the next step depends on, so a resumed run ends with exactly
the weights of an uninterrupted one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel, NonNegativeInt, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from logitcache.errors import StorageError
from logitcache.files import PARTIAL, read_json, remove_folder, write_file
from logitcache.platforms import sync_folder
from logitcache.training.evaluation.evaluator import Evaluation

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
    "read_last_checkpoint",
    "read_last_config",
    "set_random_state",
    "write_checkpoint",
]

_FOLDER = "checkpoints"
_TENSORS = "tensors.safetensors"
_STATE = "state.json"
_HOOKS = "hooks.pt"
_KEEP = 2
_REPLACED, _DAMAGED = ".replaced", ".damaged"
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """State of a training run between two steps.

    Attributes:
        position: Step, epoch, batch and running sums, as JSON values.
        config: Configuration of the run, as JSON values.
        modules: State dicts of the model and of its moving average, by name.
        optimizer: State dict of the optimizer.
        hooks: State dicts of the hooks of the run, by name.
        random: States of torch's random generators by device, with the rank as suffix for all
            processes but the first: ``cpu``, ``cpu.1``.
        notes: Notes for the user on damaged checkpoints.
    """

    position: dict[str, Any]
    config: dict[str, Any]
    modules: dict[str, dict[str, Tensor]]
    optimizer: dict[str, Any]
    random: dict[str, Tensor]
    hooks: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class _Position(BaseModel):
    step: NonNegativeInt
    epoch: NonNegativeInt
    batch: NonNegativeInt
    sums: dict[str, float]
    evaluation: Evaluation | None
    unfinished: dict[str, Any] | None = None


class _Optimizer(BaseModel):
    state: dict[int, dict[str, Any]]
    param_groups: list[dict[str, Any]]


class _State(BaseModel):
    """Schema of the JSON values."""

    position: _Position
    config: dict[str, Any]
    optimizer: _Optimizer
    tensors_sha256: str | None = None  # older versions have not written it
    hooks_sha256: str | None = None  # None without hooks


def random_state() -> dict[str, Tensor]:
    """Return the states of this process's random generators, by device."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def join_random_states(by_rank: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the random states of all processes under the names that a checkpoint uses."""
    return {
        f"{device}.{rank}" if rank else device: state
        for rank, states in enumerate(by_rank)
        for device, state in states.items()
    }


def set_random_state(random: Mapping[str, Tensor], rank: int) -> None:
    """Restore this process's random generators; a rank without a saved state keeps its own."""
    suffix = f".{rank}" if rank else ""
    if f"cpu{suffix}" in random:
        torch.set_rng_state(random[f"cpu{suffix}"])
    if f"cuda{suffix}" in random and torch.cuda.is_available():
        torch.cuda.set_rng_state(random[f"cuda{suffix}"])


def write_checkpoint(out: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint and remove all but the last two.

    Raises:
        StorageError: The checkpoint cannot be written; earlier ones are intact.
    """
    folder = out / _FOLDER
    target = folder / f"{checkpoint.position['step']:09d}"
    temporary = target.with_suffix(PARTIAL)
    tensors, state = _flatten(checkpoint)
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        save_file(tensors, temporary / _TENSORS)
        state["tensors_sha256"] = _sync_file(temporary / _TENSORS)
        if checkpoint.hooks:
            torch.save(checkpoint.hooks, temporary / _HOOKS)
            state["hooks_sha256"] = _sync_file(temporary / _HOOKS)
        # last: it has the digests of the files that are on disk by now
        write_file(temporary / _STATE, json.dumps(state))
        # a folder cannot replace another one atomically; _tidy completes an interrupted exchange
        if target.exists():
            target.rename(target.with_suffix(_REPLACED))
        temporary.rename(target)
        sync_folder(folder)  # before older ones are removed: the renaming has to be durable
        _remove_old(out)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise StorageError(
            "a checkpoint cannot be written",
            where=target,
            got=error.strerror or error,
            hint="free some space and run the same command with --resume",
        ) from error


def latest_checkpoint(out: Path) -> Path | None:
    """Return the folder of the newest checkpoint of a run, None if there is none."""
    found = _checkpoints(out)
    return found[-1] if found else None


def read_last_checkpoint(out: Path) -> Checkpoint | None:
    """Read the newest undamaged checkpoint of a run, None if there is none.

    Folders of damaged checkpoints are renamed, so that they are not read again; they are removed
    when the next checkpoint is written.

    Raises:
        StorageError: All checkpoints are damaged.
    """
    _tidy(out)
    damaged: list[tuple[Path, str]] = []
    for folder in reversed(_checkpoints(out)):
        try:
            checkpoint = read_checkpoint(folder)
        except StorageError as error:
            damaged.append((folder, str(error.got)))
            continue
        if not damaged:
            _remove_old(out)
        notes = tuple(
            f"the checkpoint {path} is damaged ({why}): training resumes from {folder.name}"
            for path, why in damaged
        )
        for path, _ in damaged:
            shutil.rmtree(path.with_suffix(_DAMAGED), ignore_errors=True)
            path.rename(path.with_suffix(_DAMAGED))
        for note in notes:
            _LOG.warning(note)
        return replace(checkpoint, notes=notes)
    if not damaged:
        return None
    raise StorageError(
        "no checkpoint of this run can be read",
        where=out / _FOLDER,
        got="; ".join(f"{path.name}: {why}" for path, why in damaged),
        hint="restore one of them from a backup, or remove this folder to start the run again",
    )


def read_last_config(out: Path) -> dict[str, Any] | None:
    """Return the configuration in the newest readable checkpoint of a run, None without one."""
    states = (read_json(folder / _STATE) for folder in reversed(_checkpoints(out)))
    configs = (state.get("config") for state in states if state is not None)
    return next((config for config in configs if isinstance(config, dict)), None)


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        StorageError: A file is missing or was changed.
    """
    try:
        return _read(folder)
    except ValidationError as error:
        first = error.errors()[0]
        got = f"{_STATE}: {'.'.join(map(str, first['loc']))}: {first['msg']}"
    except FileNotFoundError:
        got = f"{_TENSORS} is missing"
    except SafetensorError as error:
        got = f"{_TENSORS}: {error}"
    except ValueError as error:
        got = str(error)
    raise StorageError(
        "a checkpoint is damaged",
        where=folder,
        got=got,
        hint="remove this folder to resume from the checkpoint before it",
    )


def _read(folder: Path) -> Checkpoint:
    """Read a checkpoint; damage raises errors of several classes."""
    state = read_json(folder / _STATE)
    if state is None:
        raise ValueError(f"{_STATE} is missing or damaged")
    checked = _State.model_validate(state)
    if checked.tensors_sha256 not in {None, _digest(folder / _TENSORS)}:
        raise ValueError(f"{_TENSORS} was changed after it was written (different sha256)")
    return replace(
        _joined(state, load_file(folder / _TENSORS)),
        hooks=_read_hooks(folder / _HOOKS, checked.hooks_sha256),
    )


def _read_hooks(path: Path, digest: str | None) -> dict[str, dict[str, Any]]:
    """Read the states of hooks."""
    if digest is None:
        return {}
    if not path.exists():
        raise ValueError(f"{_HOOKS} is missing")
    if digest != _digest(path):
        raise ValueError(f"{_HOOKS} was changed after it was written (different sha256)")
    # weights_only: tensors and plain values; a pickle could otherwise execute code
    states: dict[str, dict[str, Any]] = torch.load(path, map_location="cpu", weights_only=True)
    return states


def _joined(state: dict[str, Any], tensors: Mapping[str, Tensor]) -> Checkpoint:
    """Return a checkpoint from its JSON values and its tensors by path."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        part, _, rest = name.partition("/")
        parts.setdefault(part, {})[rest] = tensor
    for part in ("model", "random"):
        if part not in parts:
            raise ValueError(f"{_TENSORS} has no tensors of {part!r}")
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


def _sync_file(path: Path) -> str:
    """Write a file through to the disk and return its sha256."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
    return _digest(path)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checkpoints(out: Path) -> list[Path]:
    return sorted(path for path in (out / _FOLDER).glob("*") if path.name.isdecimal())


def _remove_old(out: Path) -> None:
    """Remove all but the newest checkpoints, and the damaged ones."""
    for old in _checkpoints(out)[:-_KEEP]:
        remove_folder(old)
    for path in (out / _FOLDER).glob(f"*{_DAMAGED}"):
        shutil.rmtree(path)
    _tidy(out)


def _tidy(out: Path) -> None:
    """Complete or undo what an interrupted process was writing, replacing or removing."""
    for path in (out / _FOLDER).glob("*.*"):
        # interrupted between the two renamings of write_checkpoint: the former one is put back
        if path.suffix == _REPLACED and not path.with_suffix("").exists():
            path.rename(path.with_suffix(""))
        elif path.suffix in {PARTIAL, _REPLACED}:
            shutil.rmtree(path)
