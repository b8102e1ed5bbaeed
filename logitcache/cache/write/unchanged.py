"""Time for which a value has not changed, measured by the clock of this process.

Times that another machine writes depend on its clock; the time of an observation does not.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

__all__ = ["Unchanged"]


class Unchanged:
    """Time for which the values of some keys have been observed without a change.

    Args:
        longest_gap: Most seconds that count between two observations. A process that was stopped
            has not observed anything in the meantime, and the holder of a claim may have been
            stopped together with it.
        clock: Function that returns seconds, from any point in time.
    """

    def __init__(self, longest_gap: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._longest_gap, self._clock = longest_gap, clock
        self._seen: dict[Hashable, tuple[object, float, float]] = {}

    def seconds(self, key: Hashable, value: object) -> float:
        """Observe a value, and return for how long it has been the same."""
        now = self._clock()
        before, seconds, looked = self._seen.get(key, (None, 0.0, now))
        seconds = seconds + min(now - looked, self._longest_gap) if before == value else 0.0
        self._seen[key] = (value, seconds, now)
        return seconds

    def forget(self, key: Hashable) -> None:
        """Start from zero at the next observation."""
        self._seen.pop(key, None)
