"""How far a run is, and how fast."""

from __future__ import annotations

import time
from dataclasses import dataclass

__all__ = ["Clock", "TrainProgress"]


@dataclass(frozen=True)
class TrainProgress:
    """How far a run is.

    Attributes:
        step: Batches so far.
        steps: Batches in all.
        epoch: Counted from 0.
        loss: Of the last batch.
        images_per_second: Since the run began or went on.
        data_wait: Share of that time spent waiting for batches.
        top1: Of the last evaluation.
    """

    step: int
    steps: int
    epoch: int
    loss: float
    images_per_second: float
    data_wait: float
    top1: float | None


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
