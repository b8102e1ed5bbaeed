"""Progress and throughput of a run."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

__all__ = ["Clock", "Pace", "TrainProgress"]


@dataclass(frozen=True)
class TrainProgress:
    """How far a run is.

    Attributes:
        phase: ``training``, ``evaluating`` or ``exporting``.
        done: Steps of the run, or images of the evaluation, that are done.
        total: Of them in all.
        step: Batches so far.
        steps: Batches in all.
        epoch: Counted from 0.
        epochs: How many there are, the last one maybe in part.
        loss: Of the last batch; None before the first.
        images_per_second: Since the run began or continued.
        data_wait: Share of that time spent waiting for batches.
        top1: Of the last evaluation.
        notes: Notes for the user, all of it so far.
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
    top1: float | None
    notes: tuple[str, ...] = ()


class Pace:
    """Decides when a progress report is due: at once, and then by the clock.

    Args:
        seconds: Between reports.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._next = 0.0

    def is_due(self) -> bool:
        """Return whether a report is due now; if so, the next one is due in some seconds."""
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + self._seconds
        return True


class Clock:
    """Counts images and seconds, and the seconds spent waiting for batches.

    Attributes:
        images: Images shown since :meth:`start`, by all processes together.
    """

    def __init__(self) -> None:
        self.images = 0
        self._started = time.monotonic()
        self._waited = 0.0
        self._since = 0.0

    def start(self) -> None:
        """Begin to count."""
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
        """Return images a second, and the share of time spent waiting."""
        seconds = max(self.seconds, 1e-9)
        return {"images_per_second": self.images / seconds, "data_wait": self._waited / seconds}
