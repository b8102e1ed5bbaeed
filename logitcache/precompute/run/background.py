"""A background thread that runs functions in order.

What it is given is bounded, so memory is; after a failure nothing more is done, so nothing is
committed that came after it.
"""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

__all__ = ["Background"]

_AHEAD = 2  # things that may wait
_LOOK_SECONDS = 0.1


class Background:
    """A context that leaves only when everything is done, or failed.

    Leaving it because of an error still does what was given before, so that what is whole is kept;
    a second Ctrl-C drops it.
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
            self._failure = error  # KeyboardInterrupt: the thread drops what is waiting
        self._waiting.put(None)
        self._thread.join()
        if error is None:
            self._raise()

    def do(self, task: Callable[[], object]) -> None:
        """Have something done after all that was given before; wait while too much is waiting.

        Raises:
            BaseException: What an earlier task raised.
        """
        self._raise()
        self._waiting.put(task)

    def settle(self) -> None:
        """Wait until all that was given is done.

        Raises:
            BaseException: What a task raised.
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
                except BaseException as failure:  # raised again where it was given
                    self._failure = failure
