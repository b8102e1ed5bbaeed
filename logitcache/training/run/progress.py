"""Progress and throughput of a run."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from logitcache.training.evaluation.evaluator import Evaluation

__all__ = ["Clock", "Pace", "TrainProgress"]


@dataclass(frozen=True)
class TrainProgress:
    """Progress of a training run.

    Attributes:
        phase: ``training``, ``evaluating`` or ``exporting``.
        done: Number of steps of the run, or of images of the evaluation, that are done.
        total: Number of all these steps or images.
        step: Number of steps so far.
        steps: Number of all steps.
        epoch: Index of the epoch, from 0.
        epochs: Number of epochs; the last one may be incomplete.
        loss: Loss of the last batch; None before the first batch.
        images_per_second: Throughput since the run started or resumed.
        data_wait: Share of that time spent waiting for batches.
        evaluation: The last evaluation.
        notes: All notes for the user so far.
    """

    phase: Literal["training", "evaluating", "exporting"]
    done: int
    total: int
    step: int
    steps: int
    epoch: int
    epochs: int
    loss: float | None
    images_per_second: float
    data_wait: float
    evaluation: Evaluation | None
    notes: tuple[str, ...] = ()


class Pace:
    """Timer of progress reports; the first one is due at once.

    Args:
        seconds: Time between reports in seconds.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._next = 0.0

    def is_due(self) -> bool:
        """Return whether a report is due now; if so, start the time until the next one."""
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + self._seconds
        return True


class Clock:
    """Stopwatch for throughput and for the time spent waiting for batches.

    Attributes:
        images: Images shown since :meth:`start`, by all processes together.
    """

    def __init__(self) -> None:
        self.images = 0
        self._started = time.monotonic()
        self._waited = 0.0
        self._since = 0.0

    def start(self) -> None:
        """Start the stopwatch."""
        self._started = time.monotonic()

    def waiting(self) -> Clock:
        """Return a context whose time counts as waiting."""
        return self

    def __enter__(self) -> None:
        self._since = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._waited += time.monotonic() - self._since

    @property
    def seconds(self) -> float:
        """Seconds since :meth:`start`."""
        return time.monotonic() - self._started

    def rates(self) -> dict[str, float]:
        """Return the images per second, and the share of time spent waiting for batches."""
        seconds = max(self.seconds, 1e-9)
        return {"images_per_second": self.images / seconds, "data_wait": self._waited / seconds}
