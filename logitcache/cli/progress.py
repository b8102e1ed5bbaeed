"""Progress on stderr: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from logitcache.cache.verify import VerifyProgress
    from logitcache.precompute.compute import Progress as PrecomputeProgress
    from logitcache.precompute.compute import WorkerProgress
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
        self._workers: dict[str, TaskID] = {}
        self._noticed = 0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def precompute(self, progress: PrecomputeProgress) -> None:
        """Show how far stage 1 is."""
        seconds = max(1e-9, time.monotonic() - self._started)
        for notice in progress.notices[self._noticed :]:
            self._print(f"{self._title}: {notice}")
        self._noticed = len(progress.notices)
        for worker in progress.workers:
            self._show_worker(worker)
        gone = self._workers.keys() - {worker.name for worker in progress.workers}
        for name in gone:
            self._bar.remove_task(self._workers.pop(name))
        due = self._show(
            progress.images, progress.total, f"{progress.images / seconds:.0f} images/s"
        )
        if due:
            for worker in progress.workers:
                self._print(f"  {_words(worker)}")

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

    def views(self, done: int, total: int) -> None:
        """Show how many views are done."""
        self._show(done, total, "views")

    def verify(self, progress: VerifyProgress) -> None:
        """Show how far a verification is, in megabytes."""
        seconds = max(1e-9, time.monotonic() - self._started)
        rate = f"{progress.done / seconds / 1e6:.0f} MB/s"
        self._show(progress.done // 10**6, progress.total // 10**6, rate)

    def _print(self, text: str) -> None:
        """Print a line as it is."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _show_worker(self, worker: WorkerProgress) -> None:
        """Show what one worker does, on a line of its own below the bar."""
        if worker.name not in self._workers:
            self._workers[worker.name] = self._bar.add_task("", total=None, rates="")
        self._bar.update(
            self._workers[worker.name],
            description=f"  {_words(worker)}",
            completed=worker.images,
            total=worker.total or 1,
        )

    def _show(self, done: int, total: int, rates: str) -> bool:
        """Show how far it is; return whether a plain line was due."""
        self._bar.update(self._task, completed=done, total=total, rates=rates, visible=True)
        now = time.monotonic()
        if not self._console.is_terminal and now - self._printed > _PLAIN_SECONDS:
            self._printed = now
            left = f"{(now - self._started) / done * (total - done):.0f}" if done else "?"
            self._print(f"{self._title}: {done}/{total}, {left} s left, {rates}")
            return True
        return False


def _words(worker: WorkerProgress) -> str:
    """Say what a worker does."""
    if not worker.item:
        return f"worker {worker.name}: {worker.state}"
    slow = ", slower than the others" if worker.slow else ""
    done = f"{worker.images}/{worker.total} images, {worker.seconds:.0f} s{slow}"
    return f"worker {worker.name}: {worker.item}, {done}"
