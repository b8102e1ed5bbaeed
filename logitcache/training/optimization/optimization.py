"""Optimizers and learning-rate schedules of timm, and compilation by PyTorch."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Any

import torch
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import create_scheduler_v2

from logitcache.errors import UsageError, nearest

if TYPE_CHECKING:
    from timm.scheduler.scheduler import Scheduler
    from torch import nn, optim

    from logitcache.training.config import OptimizerConfig, ScheduleConfig

__all__ = ["build_optimizer", "build_schedule", "compiled"]

_SCHEDULES = ("constant", "cosine", "multistep", "poly", "tanh")
_WARMUP_DIVISOR = 100


def build_optimizer(network: nn.Module, config: OptimizerConfig) -> optim.Optimizer:
    """Build an optimizer, without weight decay on biases and normalization layers, as timm does.

    Parameters in ``network.lr_scales()``, if the network has this method, have a multiple of the
    learning rate; it is applied by the schedule, as timm's decay by layers is.

    Raises:
        UsageError: timm has no optimizer of this name, or it does not accept these arguments.
    """
    known = [str(name) for name in list_optimizers()]
    if config.name not in known:
        raise UsageError(f"unknown optimizer {config.name!r}", hint=nearest(config.name, known))
    try:
        optimizer = create_optimizer_v2(
            network,
            opt=config.name,
            lr=config.lr,
            weight_decay=config.weight_decay,
            layer_decay=config.layer_decay,
            **config.kwargs,
        )
    except TypeError as error:
        raise UsageError(
            f"optimizer {config.name!r} does not accept these arguments",
            where="optimizer.kwargs",
            got=error,
        ) from None
    scales = getattr(network, "lr_scales", dict[str, float])()
    named = dict(network.named_parameters())
    for scale in sorted(set(scales.values())):
        _scale_lr(optimizer, [named[name] for name in scales if scales[name] == scale], scale)
    return optimizer


def _scale_lr(optimizer: optim.Optimizer, chosen: list[nn.Parameter], scale: float) -> None:
    """Give some parameters of an optimizer groups of their own, with a multiple of ``lr_scale``."""
    ids = {id(parameter) for parameter in chosen}
    for group in list(optimizer.param_groups):
        own = [parameter for parameter in group["params"] if id(parameter) in ids]
        if own:
            group["params"] = [p for p in group["params"] if id(p) not in ids]
            scaled = {**group, "params": own, "lr_scale": scale * group.get("lr_scale", 1.0)}
            optimizer.param_groups.append(scaled)
    optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]


def build_schedule(
    optimizer: optim.Optimizer, config: ScheduleConfig, steps: int, peak: float
) -> Scheduler:
    """Build a learning-rate schedule that is stepped with every batch, set to its first value.

    Args:
        optimizer: Optimizer whose learning rate is set.
        config: Settings of the schedule.
        steps: Number of steps of the run.
        peak: Learning rate after the warm-up, which starts at a hundredth of it.

    Raises:
        UsageError: There is no such schedule.
    """
    if config.name not in _SCHEDULES:
        raise UsageError(f"unknown schedule {config.name!r}", hint=nearest(config.name, _SCHEDULES))
    schedule: Scheduler | None
    schedule, _ = create_scheduler_v2(
        optimizer,
        sched=config.name,
        num_epochs=steps,  # with one update per epoch, timm's epochs are steps
        warmup_epochs=round(config.warmup * steps),
        warmup_lr=peak / _WARMUP_DIVISOR,
        min_lr=config.min_lr,
        decay_milestones=[round(share * steps) for share in config.milestones],
        decay_rate=config.decay,
        step_on_epochs=False,
        updates_per_epoch=1,
    )
    assert schedule is not None
    schedule.step_update(0)
    return schedule


def compiled(model: nn.Module, device: torch.device) -> nn.Module:
    """Return a module that is compiled when it is first called; parameters are shared.

    Args:
        model: The module.
        device: Its device.

    Raises:
        UsageError: There is no compiler, which the generated code needs.
    """
    names = [os.environ.get("CXX", ""), "g++", "clang++", "c++"]
    if device.type == "cpu" and not any(name and shutil.which(name) for name in names):
        raise UsageError(
            "torch.compile needs a C++ compiler, and none is installed",
            where="compile",
            expected="g++ or clang++ on the PATH, or the variable CXX",
            hint="install one, or remove compile",
        )
    module: Any = torch.compile(model)
    found: nn.Module = module
    return found
