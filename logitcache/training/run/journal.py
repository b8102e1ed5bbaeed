"""Training log: JSON lines, a CSV row per epoch, and trackers.

A resumed run removes the events after its checkpoint, so no event is logged twice.
"""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from logitcache.files import make_folder, warn_damaged, write_file
from logitcache.training.run.result import forget_result
from logitcache.training.run.trackers import Trackers

if TYPE_CHECKING:
    from collections.abc import Mapping

    from logitcache.training.config import TrainConfig

__all__ = ["Journal", "open_journal", "read_journal"]

_CONFIG = "config.yaml"
_EVENTS = "journal.jsonl"
_EPOCHS = "journal.csv"
_COLUMNS = (
    "epoch",
    "step",
    "loss",
    "lr",
    "top1",
    "top5",
    "val_loss",
    "images_per_second",
    "data_wait",
    "mean_average_precision",
)


def open_journal(config: TrainConfig, step: int) -> Journal:
    """Create the folder of a run, write its configuration, and open its training log.

    Args:
        config: Configuration of the run.
        step: Number of steps of the run so far.
    """
    out = Path(config.out)
    make_folder(out)
    write_file(out / _CONFIG, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    forget_result(out)
    return Journal(out, step=step, trackers=Trackers(config, out, step))


def read_journal(out: Path | str) -> list[dict[str, Any]]:
    """Return the events of a run, oldest first, without damaged lines."""
    path = Path(out) / _EVENTS
    if not path.exists():
        return []
    *lines, unfinished = path.read_text(errors="replace").split("\n")
    del unfinished  # empty, or the beginning of a line that a killed run was writing
    events = []
    for number, line in enumerate(lines, start=1):
        event = _event(line)
        if event is None:
            warn_damaged(path, f"line {number} is not an event of a training log")
        else:
            events.append(event)
    return events


def _event(line: str) -> dict[str, Any] | None:
    """Return the event of a line, None if the line is damaged."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(event, dict) or not isinstance(event.get("event"), str):
        return None
    return event if isinstance(event.get("step"), int) else None


class Journal:
    """The log of one training run.

    Args:
        out: Folder of the run.
        step: Step from which the run continues; later events are removed.
        trackers: Trackers that receive all numbers, too.
    """

    def __init__(self, out: Path, *, step: int = 0, trackers: Trackers | None = None) -> None:
        self._path = out / _EVENTS
        self._csv = out / _EPOCHS
        kept = [event for event in read_journal(out) if event["step"] <= step]
        write_file(self._path, "".join(json.dumps(event) + "\n" for event in kept))
        table = io.StringIO(newline="")
        writer = csv.DictWriter(table, _COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(event for event in kept if event["event"] == "epoch")
        write_file(self._csv, table.getvalue())
        self._trackers = trackers

    def event(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Write one event."""
        with self._path.open("a") as file:
            file.write(json.dumps({"event": kind, "step": step, **values}) + "\n")
        if self._trackers is not None:
            self._trackers.log(kind, step, values)

    def epoch(self, step: int, values: Mapping[str, Any]) -> None:
        """Write the summary of an epoch as an event and as a row of the CSV file."""
        self.event("epoch", step, values)
        with self._csv.open("a", newline="") as file:
            csv.DictWriter(file, _COLUMNS, extrasaction="ignore").writerow({"step": step, **values})

    def epoch_at(self, step: int) -> dict[str, Any] | None:
        """Return the summary of the epoch that ended at a step, None if there is none."""
        events = [event for event in read_journal(self._path.parent) if event["step"] == step]
        return next((event for event in events if event["event"] == "epoch"), None)

    def close(self) -> None:
        """Finish the runs of the trackers."""
        if self._trackers is not None:
            self._trackers.close()
