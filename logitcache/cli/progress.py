"""Progress on stderr: a bar on a terminal, otherwise a line every 15 seconds."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from logitcache.cli.layout import PlainConsole
from logitcache.cli.logs import PROGRESS, is_quiet
from logitcache.text import visible

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.progress import Task

    from logitcache.precompute.run.compute import Progress as PrecomputeProgress
    from logitcache.precompute.run.compute import WorkerProgress
    from logitcache.training.run.progress import TrainProgress

__all__ = ["PhaseLines", "ProgressLine"]

_PLAIN_SECONDS = 15.0
_SMALL_BYTES = 10**7
"""Total below which bytes are shown in kilobytes."""
_GAPS = 3
"""Columns between title, bar, count and text."""


class _PlainColumn(TextColumn):
    """A column of text from data; see :class:`.PlainConsole`."""

    def render(self, task: Task) -> Text:
        return Text(visible(self.text_format.format(task=task)))


class ProgressLine:
    """A context that shows the progress of one command or stage.

    Args:
        title: Name of the command or stage.
        quiet: Whether to print nothing.
    """

    def __init__(self, title: str, *, quiet: bool = False) -> None:
        self._title = title
        self._console = PlainConsole(stderr=True, quiet=quiet or is_quiet())
        self._started = time.monotonic()
        self._printed = -_PLAIN_SECONDS
        # where the current phase began, to estimate when it ends
        self._phase, self._phase_started, self._phase_first = "", self._started, 0
        self._bar = Progress(
            _PlainColumn("{task.description}"),
            BarColumn(_bar_width(self._console.width)),
            _PlainColumn("{task.fields[count]}"),
            _PlainColumn("{task.fields[rates]}"),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task(title, total=None, count="", rates="starting")
        self._workers: dict[str, TaskID] = {}
        self._noticed = 0
        self._waited: float | None = None

    def __enter__(self) -> Self:
        self._bar.start()
        if not self._console.is_terminal:
            self._print(f"{self._title}: starting")
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def finish(self) -> None:
        """Print that the stage is finished, and its duration."""
        self._print(f"{self._title}: finished in {_duration(time.monotonic() - self._started)}")

    def precompute(self, progress: PrecomputeProgress) -> None:
        """Show the progress of a precompute run."""
        seconds = max(1e-9, time.monotonic() - self._started)
        if progress.work:
            self._print(f"{self._title}: {progress.work}")
        self._notice(progress.notices)
        if progress.waiting:
            self._wait(progress.waiting)
            return
        self._waited = None
        for worker in progress.workers:
            self._show_worker(worker)
        gone = self._workers.keys() - {worker.name for worker in progress.workers}
        for name in gone:
            self._bar.remove_task(self._workers.pop(name))
        rates = f"{progress.images / seconds:.0f} images/s" if progress.images else ""
        due = self._show(progress.images, progress.total, rates)
        if due:
            for worker in progress.workers:
                self._print(f"  {_words(worker)}")

    def train(self, progress: TrainProgress) -> None:
        """Show the progress of a training run."""
        self._notice(progress.notes)
        if progress.phase == "exporting":
            self._show(progress.step, progress.steps, "", phase="exporting the network")
            return
        found = progress.evaluation
        known = [] if found is None else [f"{found.score_name} {found.score:.1%}"]
        if progress.loss is not None:
            known += [
                f"loss {progress.loss:.3f}",
                f"{progress.images_per_second:.0f} images/s",
                f"data wait {progress.data_wait:.0%}",
            ]
        number = min(progress.epoch + 1, progress.epochs)
        ended = progress.epoch * progress.steps == progress.step * progress.epochs
        if progress.phase == "evaluating" and ended:
            number = max(1, progress.epoch)  # the evaluation belongs to the epoch before it
        epoch = f"epoch {number}/{progress.epochs}"
        phase = epoch if progress.phase == "training" else f"{epoch}, evaluating"
        self._show(
            progress.done,
            progress.total,
            ", ".join(known),
            phase=phase,
            whole=progress.phase,
        )

    def count(self, done: int, total: int) -> None:
        """Show how many images are done."""
        seconds = max(1e-9, time.monotonic() - self._started)
        self._show(done, total, f"{done / seconds:.0f} images/s")

    def units(self, done: int, total: int) -> None:
        """Show how many units are done."""
        self._show(done, total, "units")

    def views(self, done: int, total: int) -> None:
        """Show how many views are done."""
        self._show(done, total, "views")

    def bytes(self, done: int, total: int) -> None:
        """Show how many bytes of a total are done, in megabytes, or in kilobytes if it is small."""
        size, unit = (10**6, "MB") if total >= _SMALL_BYTES else (10**3, "kB")
        seconds = max(1e-9, time.monotonic() - self._started)
        rate = f"{done / seconds / size:.0f} {unit}/s"
        self._show(-(-done // size), -(-total // size), rate, unit=f" {unit}")

    def _notice(self, notices: Sequence[str]) -> None:
        """Print the notices that have not been printed yet."""
        for notice in notices[self._noticed :]:
            self._print(f"{self._title}: {notice}")
        self._noticed = max(self._noticed, len(notices))

    def _wait(self, what: str) -> None:
        """Show what the run waits for: a line at once, then in the bar or every 15 seconds."""
        self._bar.update(self._task, rates=what)
        now = time.monotonic()
        if self._waited is None or (
            not self._console.is_terminal and now - self._waited > _PLAIN_SECONDS
        ):
            self._waited = now
            self._print(f"{self._title}: {what}")

    def _print(self, text: str) -> None:
        """Print one line without wrapping it, and log it."""
        self._console.print(text, highlight=False, soft_wrap=True)
        PROGRESS.info("%s", text)

    def _show_worker(self, worker: WorkerProgress) -> None:
        """Show the progress of one worker on a separate line below the bar."""
        if worker.name not in self._workers:
            self._workers[worker.name] = self._bar.add_task("", total=None, count="", rates="")
        self._bar.update(
            self._workers[worker.name],
            description=f"  {_words(worker)}",
            completed=worker.images,
            total=worker.total or 1,
            count=f"{worker.images}/{worker.total or 1}",
        )

    def _show(
        self,
        done: int,
        total: int,
        rates: str,
        *,
        phase: str = "",
        whole: str = "",
        unit: str = "",
    ) -> bool:
        """Show the progress; return whether a line was printed because stderr is no terminal.

        Args:
            done: Number of items that are done.
            total: Number of all items.
            rates: Text about the speed.
            phase: Phase of the work, printed next to the title.
            whole: Name of what ``done`` counts; the estimate of the time left starts again when it
                changes.
            unit: Unit of both numbers, with a space in front.
        """
        now = time.monotonic()
        if whole != self._phase:
            self._phase, self._phase_started, self._phase_first = whole, now, done
        more = done - self._phase_first  # a resumed run starts at a number that took no time
        left = ""
        if more > 0 and done < total:
            seconds = (now - self._phase_started) / more * (total - done)
            left = f"{_duration(seconds)} left"
        text = ", ".join(part for part in (left, rates) if part)
        title = f"{self._title}: {phase}" if phase else self._title
        count = f"{done}/{total}{unit}"
        self._bar.update(
            self._task,
            description=title,
            completed=done,
            total=total,
            count=count,
            rates=self._fitting(text, len(title) + len(count)),
        )
        if now - self._printed <= _PLAIN_SECONDS:
            return False
        self._printed = now
        line = f"{title}: {count}" + (f", {text}" if text else "")
        if self._console.is_terminal:
            PROGRESS.info("%s", line)  # where the bar shows it
            return False
        self._print(line)
        return True

    def _fitting(self, text: str, taken: int) -> str:
        """Return the first parts of a text that fit next to the bar, and one at least."""
        width = self._console.width
        room = width - taken - _bar_width(width) - _GAPS
        parts = text.split(", ")
        while len(parts) > 1 and len(", ".join(parts)) > room:
            parts.pop()
        return ", ".join(parts)


def _bar_width(width: int) -> int:
    """Return the width of a bar, which leaves room for text in a narrow terminal."""
    return 16 if width < 110 else 24 if width < 140 else 40


def _duration(seconds: float) -> str:
    """Return a time as ``40 s``, ``12 min`` or ``3 h 20 min``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def _words(worker: WorkerProgress) -> str:
    """Return a description of what a worker does."""
    if not worker.item:
        return f"worker {worker.name}: {worker.state}"
    slow = ", slower than the others" if worker.slow else ""
    done = f"{worker.images}/{worker.total} images, {worker.seconds:.0f} s{slow}"
    return f"worker {worker.name}: {worker.item}, {done}"


class PhaseLines:
    """A context that shows one progress line after another, for each phase of a verification."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._phase = ""
        self._line: ProgressLine | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def show(self, phase: str, done: int, total: int) -> None:
        """Show the progress of a phase, or its name alone if it has no number of steps.

        The line of the previous phase ends.
        """
        if self._line is None or phase != self._phase:
            self._stack.close()
            self._phase, self._line = phase, self._stack.enter_context(ProgressLine(phase))
        if phase == "verify":
            self._line.bytes(done, total)
        elif total:
            self._line.count(done, total)
