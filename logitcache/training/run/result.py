"""Result of a training run, and its file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from logitcache.files import read_json, warn_damaged, write_file
from logitcache.training.evaluation.evaluator import Evaluation

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["TrainResult", "forget_result", "parse_result", "read_result", "write_result"]

_RESULT = "result.json"


@dataclass(frozen=True)
class TrainResult:
    """Result of a training run. Attributes without another unit are numbers of images.

    Attributes:
        out: Folder of the run; the exported network is in ``export`` below it.
        evaluation: Evaluation at the end; None without validation images.
        steps: Number of training steps.
        images: Images shown, counted once per epoch.
        set_images: Images of the training set.
        labeled: Images whose label was used.
        parameters: Number of parameters of the network.
        seconds: Time since the run started or resumed, in seconds.
        data_wait: Share of that time spent waiting for batches.
        processes: Number of processes of the run.
        without_partner: Images of the set that some view left out, because the image to mix in is
            not available.
        left_out: Images of the data that are not in the cache.
        missing: Images of the cache that are not in the data.
        unreadable: Images that could not be decoded when the cache was computed.
        withdrawn: Images of the cache that were excluded.
        skipped: Training images that could not be decoded and were left out.
        skipped_val: Validation images that could not be decoded and were left out.
        unlisted: Number of files of the training set that are not among its images, by reason.
        unlisted_val: The same for the validation set.
        notes: Notes for the user.
    """

    out: str
    evaluation: Evaluation | None
    steps: int
    images: int
    set_images: int
    labeled: int
    parameters: int
    seconds: float
    data_wait: float
    processes: int = 1
    without_partner: int = 0
    left_out: int = 0
    missing: int = 0
    unreadable: int = 0
    withdrawn: int = 0
    skipped: int = 0
    skipped_val: int = 0
    unlisted: dict[str, int] = field(default_factory=dict)
    unlisted_val: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return {**asdict(self), "notes": list(self.notes)}


def write_result(result: TrainResult) -> None:
    """Write the result into the folder of its run, which marks the run as finished."""
    write_file(Path(result.out) / _RESULT, json.dumps(result.to_json(), indent=2) + "\n")


def forget_result(out: Path) -> None:
    """Remove the result of a run that continues, which marks the run as unfinished."""
    (out / _RESULT).unlink(missing_ok=True)


def read_result(out: Path | str) -> TrainResult | None:
    """Read the result of a run, None if it is not finished or the file is damaged."""
    path = Path(out) / _RESULT
    values = read_json(path)
    return None if values is None else parse_result(values, path)


def parse_result(values: Mapping[str, Any], path: Path) -> TrainResult | None:
    """Return the result that JSON values describe, None if they are damaged.

    Args:
        values: The values, as :meth:`TrainResult.to_json` returns them.
        path: The file that they come from, for the warning.
    """
    if "labelled" in values:  # as version 0.1 wrote it
        values = {**values, "labeled": values["labelled"]}
        del values["labelled"]
    try:
        evaluation = TypeAdapter(Evaluation | None).validate_python(values.get("evaluation"))
        found = TypeAdapter(TrainResult).validate_python({**values, "evaluation": evaluation})
    except ValidationError as error:
        first = error.errors()[0]
        warn_damaged(path, f"{'.'.join(map(str, first['loc']))}: {first['msg']}")
        return None
    return found
