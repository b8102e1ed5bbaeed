"""Trackers of accelerate that receive the values of a training log: TensorBoard, wandb, MLflow.

A resumed run continues the run of each tracker, whose id is a small file in the folder of the run.
"""

from __future__ import annotations

import json
import logging
import uuid
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from accelerate.tracking import MLflowTracker, TensorBoardTracker, WandBTracker

from logitcache.errors import UsageError
from logitcache.files import write_file
from logitcache.text import visible

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from accelerate.tracking import GeneralTracker

    from logitcache.training.config import TrainConfig

__all__ = ["TRACKERS", "Trackers", "check_trackers_installed"]

_LOG = logging.getLogger(__name__)
_IDS = "trackers.json"
_BOARD = "tensorboard"


@dataclass(frozen=True)
class _Run:
    """What a tracker is made from.

    Attributes:
        out: Folder of the training run.
        project: Project or experiment.
        step: Step from which the training run continues.
        ids: Ids of the runs of trackers by name of the tracker, of an earlier start.
    """

    out: Path
    project: str
    step: int
    ids: dict[str, str]


def _tensorboard(run: _Run) -> GeneralTracker:
    # events after the checkpoint that a run is resumed from are hidden
    return TensorBoardTracker(_BOARD, run.out, purge_step=run.step + 1)


def _wandb(run: _Run) -> GeneralTracker:
    run.ids.setdefault("wandb", uuid.uuid4().hex)
    return WandBTracker(
        run.project, dir=str(run.out), name=run.out.name, id=run.ids["wandb"], resume="allow"
    )


def _mlflow(run: _Run) -> GeneralTracker:
    return MLflowTracker(run.project, run_id=run.ids.get("mlflow"), run_name=run.out.name)


TRACKERS: dict[str, Callable[[_Run], GeneralTracker]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
}
"""By name of the tracker, which is that of its package."""


def check_trackers_installed(names: Sequence[str]) -> None:
    """Check that the packages of trackers are installed.

    Raises:
        UsageError: One is not.
    """
    for name in names:
        if find_spec(name) is None:
            raise UsageError(
                f"the tracker {name} needs the package {name}, which is not installed",
                where="log_with",
                hint='pip install "logitcache[trackers]", or leave it out of log_with',
            )


class Trackers:
    """The trackers of a run in the process that writes its log.

    Args:
        config: Configuration of the run; without ``log_with``, TensorBoard if it is installed.
        out: Folder of the run.
        step: Step from which the run continues.

    Raises:
        UsageError: A tracker cannot be started.
    """

    def __init__(self, config: TrainConfig, out: Path, step: int) -> None:
        default = [_BOARD] if find_spec(_BOARD) is not None else []
        names: list[str] = default if config.log_with is None else [*config.log_with]
        path = out / _IDS
        ids = json.loads(path.read_text()) if step and path.is_file() else {}
        run = _Run(out, config.project, step, ids)
        self._trackers: dict[str, GeneralTracker] = {}
        for name in names:
            self._trackers[name] = _started(name, run)
        if run.ids:
            write_file(path, json.dumps(run.ids))
        for name in self._trackers.keys() - {_BOARD}:  # it would start a run of its own for them
            self._call(name, "store_init_configuration", _flat(config.model_dump(mode="json")))

    def log(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Send the numbers among values, as ``kind/name``."""
        numbers = {
            f"{kind}/{name}": value
            for name, value in values.items()
            if isinstance(value, int | float)
        }
        for name in list(self._trackers):
            self._call(name, "log", numbers, step=step)

    def close(self) -> None:
        """Send buffered values, and finish the runs of the trackers."""
        for name in list(self._trackers):
            self._call(name, "finish")
        self._trackers = {}

    def _call(self, name: str, method: str, *values: Any, **options: Any) -> None:
        """Call a tracker; one that fails is not used any more, since the training is worth more."""
        try:
            getattr(self._trackers[name], method)(*values, **options)
        except Exception as error:  # of any kind: files, networks, services
            del self._trackers[name]
            _LOG.warning(
                "tracker %s has failed and is not used any more: %s", name, visible(str(error))
            )


def _started(name: str, run: _Run) -> GeneralTracker:
    try:
        tracker = TRACKERS[name](run)
        tracker.start()
    except Exception as error:  # of any kind: files, networks, services
        raise UsageError(
            f"the tracker {name} cannot be started",
            where="log_with",
            got=str(error).split("\n")[0][:300] or type(error).__name__,
            hint="set up its account or server (wandb without a network: WANDB_MODE=offline), or "
            "leave it out of log_with",
        ) from error
    if name == "mlflow":
        run.ids[name] = tracker.tracker.info.run_id
    return tracker


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str | int | float | bool]:
    """Return settings by dotted path; lists as JSON, without those that are None."""
    flat: dict[str, str | int | float | bool] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        elif isinstance(value, str | int | float):
            flat[f"{prefix}{name}"] = value
        elif value is not None:
            flat[f"{prefix}{name}"] = json.dumps(value)
    return flat
