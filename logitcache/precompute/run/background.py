"""A background thread that calls functions in order.

Its queue is bounded, which bounds memory. After an exception no further function is called, so that
nothing is committed after a failure.
"""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

__all__ = ["Background"]

_AHEAD = 2  # maximum number of queued tasks
_LOOK_SECONDS = 0.1


class Background:
    """A context with a background thread; leaving it waits for all tasks, or for the first failure.

    If the context is left by an exception, the queued tasks are still run, so that complete units
    are kept; KeyboardInterrupt (a second Ctrl-C) drops them.
    """

    def __init__(self) -> None:
        self._waiting: queue.Queue[Callable[[], object] | None] = queue.Queue(_AHEAD)
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="write", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None and not isinstance(error, Exception | GeneratorExit):
            self._failure = error  # KeyboardInterrupt: the thread drops the queued tasks
        self._waiting.put(None)
        self._thread.join()
        if error is None:
            self._raise()

    def do(self, task: Callable[[], object]) -> None:
        """Queue a task; wait while the queue is full.

        Raises:
            BaseException: The exception of an earlier task.
        """
        self._raise()
        self._waiting.put(task)

    def settle(self) -> None:
        """Wait until all queued tasks are done.

        Raises:
            BaseException: The exception of a task.
        """
        done = threading.Event()
        self._waiting.put(done.set)
        while not done.wait(_LOOK_SECONDS) and self._failure is None:
            pass
        self._raise()

    def _raise(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _work(self) -> None:
        while (task := self._waiting.get()) is not None:
            if self._failure is None:
                try:
                    task()
                except BaseException as failure:  # raised again by do, settle and __exit__
                    self._failure = failure
