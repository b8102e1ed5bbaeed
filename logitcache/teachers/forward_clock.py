"""Time of the forward passes of teachers, without reading, rendering, encoding or waiting."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ForwardClock", "ForwardTime"]


@dataclass(frozen=True)
class ForwardTime:
    """Forward passes of one teacher.

    Attributes:
        seconds: Their time on the device, summed.
        images: Number of images, counted once per view.
    """

    seconds: float = 0.0
    images: int = 0

    def plus(self, seconds: float, images: int = 0) -> ForwardTime:
        """Return the sum with further forward passes."""
        return ForwardTime(self.seconds + seconds, self.images + images)


class ForwardClock:
    """Sum of the time of forward passes by teacher.

    A processor has computed a forward pass when the call returns. A CUDA device has it in a queue
    by then, so its time is that between two events in the queue.

    Args:
        device: Device of the teachers.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._times: dict[str, ForwardTime] = {}
        self._queued: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def measure(self, teacher: str, images: int) -> Iterator[None]:
        """Measure the forward passes that are started in the block."""
        if self._device.type != "cuda":
            started = time.perf_counter()
            yield
            self._add(teacher, time.perf_counter() - started, images)
            return
        stream = torch.cuda.current_stream(self._device)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]  # torch annotates its fields only
        start.record(stream)
        yield
        end.record(stream)
        self._add(teacher, 0.0, images)
        self._queued.append((teacher, start, end))
        while self._queued and self._queued[0][2].query():  # type: ignore[no-untyped-call]
            self._collect()

    @property
    def times(self) -> dict[str, ForwardTime]:
        """Times by teacher; waits for the forward passes in the queue."""
        while self._queued:
            self._queued[0][2].synchronize()
            self._collect()
        return dict(self._times)

    def _collect(self) -> None:
        teacher, start, end = self._queued.pop(0)
        self._add(teacher, start.elapsed_time(end) / 1e3)

    def _add(self, teacher: str, seconds: float, images: int = 0) -> None:
        self._times[teacher] = self._times.get(teacher, ForwardTime()).plus(seconds, images)
