"""Axes of charts: places of values, and ticks at round numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from logitcache.report.quantities import number_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["Axis"]

_TICKS = 5  # intervals between ticks, about
_STEPS = (1.0, 2.0, 5.0, 10.0)
_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Axis:
    """An axis.

    Attributes:
        label: Name of the quantity, with its unit.
        low: Lowest value.
        high: Highest value, above ``low``.
        text: Returns the text of a tick.
        is_log: Whether the axis is logarithmic; its values are positive.
    """

    label: str
    low: float
    high: float
    text: Callable[[float], str] = number_text
    is_log: bool = False

    @classmethod
    def around(
        cls,
        label: str,
        values: Iterable[float],
        *,
        text: Callable[[float], str] = number_text,
        is_log: bool = False,
        zero: bool = False,
    ) -> Axis:
        """Return an axis on which all values have a place.

        Args:
            label: Name of the quantity, with its unit.
            values: Finite values; positive ones for a logarithmic axis.
            text: Returns the text of a tick.
            is_log: Whether the axis is logarithmic.
            zero: Whether the axis begins at zero.
        """
        known = list(values) or [1.0]
        low, high = min(known), max(known)
        if is_log:
            return cls(label, low / 1.2, high * 1.2, text, is_log=True)
        low = 0.0 if zero else low
        room = 0.05 * (high - low) or 0.5 * abs(high) or 1.0
        return cls(label, low if zero else low - room, high + room, text)

    def place(self, value: float) -> float:
        """Return the place of a value between 0 (lowest) and 1; values outside are at an end."""
        low, high, value = (self._scaled(each) for each in (self.low, self.high, value))
        return min(1.0, max(0.0, (value - low) / (high - low)))

    def ticks(self) -> list[tuple[float, str]]:
        """Return places and texts of the ticks, ascending."""
        values = self._powers() if self.is_log else _round_values(self.low, self.high)
        return [(self.place(value), self.text(value)) for value in values]

    def _scaled(self, value: float) -> float:
        if not self.is_log:
            return value
        return math.log10(max(value, self.low))

    def _powers(self) -> list[float]:
        """Return powers of ten; on shorter axes also 2 and 5 times them, or equal distances."""
        if self.high < 4 * self.low:
            return _round_values(self.low, self.high)
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        factors = (1.0,) if last - first > 3 else _STEPS[:3]
        values = [factor * 10.0**power for power in range(first, last + 1) for factor in factors]
        return [value for value in values if self.low <= value <= self.high]


def _round_values(low: float, high: float) -> list[float]:
    """Return multiples of 1, 2 or 5 times a power of ten between two values."""
    rough = (high - low) / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(s * power for s in _STEPS if s * power >= rough * (1 - _TOLERANCE))
    first, last = math.ceil(low / step - _TOLERANCE), math.floor(high / step + _TOLERANCE)
    return [number * step for number in range(first, last + 1)]
