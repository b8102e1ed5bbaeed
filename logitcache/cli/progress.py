"""Progress on stderr: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from logitcache.cache.verify import VerifyProgress
    from logitcache.precompute.compute import Progress as PrecomputeProgress
    from logitcache.training.progress import TrainProgress

__all__ = ["ProgressLine"]

_PLAIN_SECONDS = 15.0


class ProgressLine:
    """One line of progress; a context.

    Args:
        title: What is going on.
        quiet: Whether to print nothing.
    """

    def __init__(self, title: str, *, quiet: bool = False) -> None:
        self._title = title
        self._console = Console(stderr=True, quiet=quiet)
        self._started = self._printed = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[rates]}"),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task(title, total=None, rates="", visible=False)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def precompute(self, progress: PrecomputeProgress) -> None:
        """Show how far stage 1 is."""
        seconds = max(1e-9, time.monotonic() - self._started)
        self._show(progress.images, progress.total, f"{progress.images / seconds:.0f} images/s")

    def train(self, progress: TrainProgress) -> None:
        """Show how far a training is."""
        rates = (
            f"loss {progress.loss:.3f}, {progress.images_per_second:.0f} images/s, "
            f"data wait {progress.data_wait:.0%}"
        )
        if progress.top1 is not None:
            rates = f"top-1 {progress.top1:.1%}, {rates}"
        self._show(progress.step, progress.steps, rates)

    def count(self, done: int, total: int) -> None:
        """Show how many of something are done."""
        seconds = max(1e-9, time.monotonic() - self._started)
        self._show(done, total, f"{done / seconds:.0f} images/s")

    def verify(self, progress: VerifyProgress) -> None:
        """Show how far a verification is, in megabytes."""
        seconds = max(1e-9, time.monotonic() - self._started)
        rate = f"{progress.done / seconds / 1e6:.0f} MB/s"
        self._show(progress.done // 10**6, progress.total // 10**6, rate)

    def _show(self, done: int, total: int, rates: str) -> None:
        self._bar.update(self._task, completed=done, total=total, rates=rates, visible=True)
        now = time.monotonic()
        if not self._console.is_terminal and now - self._printed > _PLAIN_SECONDS:
            self._printed = now
            left = (now - self._started) / max(1, done) * (total - done)
            self._console.print(
                f"{self._title}: {done}/{total}, {left:.0f} s left, {rates}", highlight=False
            )
