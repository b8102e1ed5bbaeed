"""Observation of how long something has not changed, by the clock of this process.

Times that another machine writes depend on its clock. What this process has seen, and for how long,
depends on its own alone.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

__all__ = ["Unchanged"]


class Unchanged:
    """For how long the values of some keys have been seen without a change.

    Args:
        longest_gap: Most seconds that count between two looks. A process that was stopped itself
            has not seen anything in the meantime, and the holder of a claim may have been stopped
            together with it.
        clock: Seconds, from any point in time.
    """

    def __init__(self, longest_gap: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._longest_gap, self._clock = longest_gap, clock
        self._seen: dict[Hashable, tuple[object, float, float]] = {}

    def seconds(self, key: Hashable, value: object) -> float:
        """Look once more, and return for how long the value has been the same."""
        now = self._clock()
        before, seconds, looked = self._seen.get(key, (None, 0.0, now))
        seconds = seconds + min(now - looked, self._longest_gap) if before == value else 0.0
        self._seen[key] = (value, seconds, now)
        return seconds

    def forget(self, key: Hashable) -> None:
        """Start from zero at the next look."""
        self._seen.pop(key, None)
