"""State of a training run: everything that the next step depends on.

A checkpoint contains all of it, so that a resumed run ends with exactly the weights of an
uninterrupted one; the number of processes may change.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from timm.utils import ModelEmaV3

from logitcache.errors import StorageError, UsageError
from logitcache.training.evaluation.evaluator import Evaluation
from logitcache.training.optimization.optimization import build_optimizer, build_schedule, compiled
from logitcache.training.run.checkpoint import (
    Checkpoint,
    join_random_states,
    latest_checkpoint,
    random_state,
    read_last_checkpoint,
    set_random_state,
    write_checkpoint,
)
from logitcache.training.run.result import TrainResult, read_result

if TYPE_CHECKING:
    from torch import Tensor, nn

    from logitcache.training.config import TrainConfig
    from logitcache.training.distributed import DistributedContext
    from logitcache.training.hooks import Hooks
    from logitcache.training.optimization.trainable_student import TrainableStudent

__all__ = ["RunState", "previous_run"]

# fields that may change when a run is resumed; its length may grow, too
_FREE_FIELDS = {
    "out",
    "device",
    "threads",
    "workers",
    "image_memory",
    "on_bad_image",
    "license",
    "log_with",
    "project",
    "checkpoint_every",
    "tolerate_pixel_drift",
    "local_copy",
    "local_copy_bytes",
    "revision",
    "signed_by",
}


def previous_run(
    config: TrainConfig, *, resume: bool
) -> tuple[Checkpoint | None, TrainResult | None]:
    """Return the checkpoint of an earlier run in the same folder, and its result if finished.

    A finished run that is continued for longer is not finished.

    Args:
        config: Configuration of the run.
        resume: Whether an earlier run is resumed.

    Raises:
        UsageError: There is an earlier run and ``resume`` is false, or its configuration differs.
        StorageError: All checkpoints of the earlier run are damaged.
    """
    out = Path(config.out)
    if latest_checkpoint(out) is not None and not resume:
        raise UsageError(
            "this folder already contains a run",
            where=out,
            hint="continue it with --resume, or choose another folder with --out",
        )
    checkpoint = read_last_checkpoint(out)
    if checkpoint is None:
        return None, None
    # parsed, so that options added since the checkpoint was written have their defaults
    saved = type(config).parse(checkpoint.config, f"{out}, checkpoint", from_python=True)
    before = saved.model_dump(mode="json")
    now = config.model_dump(mode="json")
    differing = sorted(name for name in now.keys() - _FREE_FIELDS if now[name] != before[name])
    length = "steps" if config.epochs is None else "epochs"
    longer = differing == [length] and now[length] > (before[length] or math.inf)
    if differing and not longer:
        own = set(differing) <= {"epochs", "steps"}
        raise UsageError(
            "the run in this folder has a different configuration",
            where=out,
            expected="; ".join(f"{name} {before[name]}" for name in differing),
            got="; ".join(f"{name} {now[name]}" for name in differing),
            hint="a resumed run can be longer but not shorter, in the same unit: epochs or steps"
            if own
            else "choose another folder with --out; to continue from the trained network, start a "
            f"new run with --student local-dir:{out / 'export'}",
        )
    return checkpoint, None if longer else read_result(out)


class RunState:
    """Model, optimizer, schedule and position of a training run.

    Args:
        config: Configuration of the run.
        network: The student.
        trainable: The student with the parameters of its objective.
        steps: Number of steps of the run.
        ranks: The processes of the run.
        hooks: The hooks of the run; their states are part of checkpoints.

    Attributes:
        step: Number of steps so far.
        epoch: Index of the current epoch, from 0.
        batch: Number of batches of this epoch so far.
        evaluation: The last evaluation.
        unfinished: Means of an epoch that has ended but is not yet evaluated and logged.
        model: The trainable student as prepared by accelerate.
        optimizer: Optimizer of all its parameters.
    """

    def __init__(
        self,
        config: TrainConfig,
        network: nn.Module,
        trainable: TrainableStudent,
        *,
        steps: int,
        ranks: DistributedContext,
        hooks: Hooks,
    ) -> None:
        self.step = self.epoch = self.batch = 0
        self.evaluation: Evaluation | None = None
        self.unfinished: dict[str, Any] | None = None
        self._sums: dict[str, Tensor] = {}
        self._config = config
        self._network = network
        self._trainable = trainable
        self._ranks = ranks
        self._hooks = hooks
        if config.channels_last:
            network.to(memory_format=torch.channels_last)
        optimizer = build_optimizer(trainable, config.optimizer)
        self._schedule = build_schedule(optimizer, config.schedule, steps, config.optimizer.lr)
        self.model, self.optimizer = ranks.accelerator.prepare(trainable, optimizer)
        # of the loss in fp16; None for all other types
        self._scaler: Any = ranks.accelerator.scaler
        if config.compile:
            self.model = compiled(self.model, ranks.accelerator.device)
        self._ema = (
            ModelEmaV3(network, config.ema, use_warmup=True) if config.ema is not None else None
        )

    @property
    def final_network(self) -> nn.Module:
        """The network to evaluate and export: the moving average if there is one."""
        return self._network if self._ema is None else self._ema.module

    def count(self, losses: dict[str, Tensor]) -> None:
        """Update schedule, moving average and sums of losses after a step.

        Args:
            losses: This process's part of the loss and of its terms, by name.
        """
        self.step += 1
        self.batch += 1
        self._schedule.step_update(self.step)
        if self._ema is not None:
            self._ema.update(self._network, step=self.step)
        for name, value in losses.items():
            # stays on the device: reading the number would wait for the step
            self._sums[name] = self._sums.get(name, 0.0) + value.detach()

    def means(self) -> dict[str, float]:
        """Return the mean losses over the batches of this epoch, by name; collective."""
        return {name: total / self.batch for name, total in self._totals().items()}

    def next_epoch(self) -> None:
        """Set the position to the start of the next epoch."""
        self.epoch, self.batch, self._sums = self.epoch + 1, 0, {}

    def save(self) -> None:
        """Write a checkpoint; collective, so every process has to call this."""
        sums = self._totals()
        random = join_random_states(self._ranks.gather(random_state()))
        hooks = self._hooks.state_dict()  # in every process: a hook may exchange what it has
        if self._ranks.is_first:
            self._write(sums, random, hooks)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Set the complete state to that of a checkpoint."""
        position = checkpoint.position
        self.step, self.epoch, self.batch = (
            position["step"],
            position["epoch"],
            position["batch"],
        )
        device = self._ranks.accelerator.device
        # a checkpoint has sums over all processes, so one process continues them
        own = float(self._ranks.is_first)
        self._sums = {
            name: torch.tensor(own * total, device=device)
            for name, total in position["sums"].items()
        }
        if position["evaluation"]:
            self.evaluation = Evaluation(**position["evaluation"])
        self.unfinished = position.get("unfinished")
        try:
            self._trainable.load_state_dict(checkpoint.modules["model"])
            if self._ema is not None:
                self._ema.module.load_state_dict(checkpoint.modules["ema"])
            self.optimizer.load_state_dict(checkpoint.optimizer)
            if self._scaler is not None and position.get("scaler"):
                self._scaler.load_state_dict(position["scaler"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise StorageError(
                "a checkpoint does not fit the network of this run",
                where=f"{self._config.out}, step {self.step}",
                got=str(error).partition("\n")[2].strip()[:300] or str(error)[:300],
                hint="remove the folder of this checkpoint to resume from the one before it",
            ) from error
        where = f"{self._config.out}, checkpoint of step {self.step}"
        self._hooks.load_state_dict(checkpoint.hooks, where)
        self._schedule.step_update(self.step)
        # last, since building and loading may draw random numbers; ranks that the checkpoint lacks
        # keep the stream of reseed
        self._ranks.reseed(self._config.seed, self.step)
        set_random_state(checkpoint.random, self._ranks.rank)

    def _totals(self) -> dict[str, float]:
        """Return the sums of losses of all processes over the batches of this epoch."""
        return {name: float(self._ranks.total(own)) for name, own in self._sums.items()}

    def _write(
        self, sums: dict[str, float], random: dict[str, Tensor], hooks: dict[str, dict[str, Any]]
    ) -> None:
        modules = {"model": self._trainable.state_dict()}
        if self._ema is not None:
            modules["ema"] = self._ema.module.state_dict()
        position = {
            "step": self.step,
            "epoch": self.epoch,
            "batch": self.batch,
            "sums": sums,
            "evaluation": self.evaluation.to_json() if self.evaluation else None,
            "unfinished": self.unfinished,
            "scaler": None if self._scaler is None else self._scaler.state_dict(),
        }
        checkpoint = Checkpoint(
            position=position,
            config=self._config.model_dump(mode="json"),
            modules=modules,
            optimizer=self.optimizer.state_dict(),
            random=random,
            hooks=hooks,
        )
        write_checkpoint(Path(self._config.out), checkpoint)
