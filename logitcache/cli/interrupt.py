"""Ctrl-C and SIGTERM as requests to stop after the current batch."""

from __future__ import annotations

import contextlib
import signal
import threading
from typing import TYPE_CHECKING, Self

from logitcache.cache.store.retry import end_waits
from logitcache.cli.launch import is_launched

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

__all__ = ["StopRequest", "interruptible"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """A context in which a first signal is noted and a second one interrupts at once.

    ``torchrun`` passes on a Ctrl-C that its processes have had already, signals all of them as soon
    as one has ended, and ends by force those that take too long: there a further signal says
    nothing new, not even to a process that is about to leave.
    """

    def __init__(self) -> None:
        self._asked = False

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_IGN if is_launched() else handler)

    def __call__(self) -> bool:
        """Return whether a signal has come."""
        return self._asked

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._asked and not is_launched():
            _interrupt(number, frame)
        self._asked = True


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let a Ctrl-C also end the retries of threads, which would continue for minutes otherwise."""
    before = signal.getsignal(signal.SIGINT)
    main = threading.current_thread() is threading.main_thread()
    if not main or before is not signal.default_int_handler:  # ignored, or somebody else's
        yield
        return
    signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _interrupt(number: int, frame: FrameType | None) -> None:
    del number, frame
    end_waits()
    raise KeyboardInterrupt
