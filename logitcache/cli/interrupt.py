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
    """A context in which the first signal is recorded and a second one interrupts at once.

    Under ``torchrun`` only the first signal counts: torchrun repeats a Ctrl-C that its processes
    have already received, sends signals to all processes once one has ended, and kills those that
    take too long.
    """

    def __init__(self) -> None:
        self._requested = False

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            # torchrun may still signal a process that has finished and is about to exit with 0
            signal.signal(number, signal.SIG_IGN if is_launched() else handler)

    def __call__(self) -> bool:
        """Return whether a signal has been received."""
        return self._requested

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._requested and not is_launched():
            _interrupt(number, frame)
        self._requested = True


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Make Ctrl-C also end retries in other threads, which would otherwise go on for minutes."""
    before = signal.getsignal(signal.SIGINT)
    main = threading.current_thread() is threading.main_thread()
    # only the main thread may set handlers, and a handler of the calling program is left alone
    if not main or before is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _interrupt(number: int, frame: FrameType | None) -> None:
    del number, frame
    end_waits()  # first: KeyboardInterrupt reaches the main thread only, which may wait for others
    raise KeyboardInterrupt
