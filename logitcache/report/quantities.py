"""Numbers as text: shares, bytes, seconds, means with deviations, and encodings in a few words."""

from __future__ import annotations

from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = [
    "bytes_text",
    "encoding_text",
    "number_text",
    "percent_text",
    "percent_tick",
    "seconds_text",
    "spread_text",
]


def percent_text(value: float | None) -> str:
    """Return a fraction as a percentage, a dash for None."""
    return "-" if value is None else f"{100 * value:.1f} %"


def percent_tick(value: float) -> str:
    """Return a fraction as a percentage with as few digits as it needs, for the tick of an axis."""
    return f"{100 * value:.6g} %"


def spread_text(values: Sequence[float | None]) -> str:
    """Return the mean and, for several values, the standard deviation, in percent."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    if len(known) == 1:
        return percent_text(known[0])
    return f"{100 * mean(known):.1f} ± {100 * stdev(known):.1f} %"


def bytes_text(count: float) -> str:
    """Return a number of bytes in B, kB, MB, GB or TB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"


def seconds_text(seconds: float) -> str:
    """Return a duration in seconds, minutes or hours."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes = seconds / 60
    return f"{minutes:.1f} min" if minutes < 100 else f"{minutes / 60:.1f} h"


def number_text(value: float) -> str:
    """Return a number with up to four significant digits, thousands separated by spaces."""
    if abs(value) >= 1000:
        return f"{value:,.0f}".replace(",", "\u202f")
    return f"{value:.4g}"


def encoding_text(settings: Mapping[str, Any]) -> str:
    """Return an encoding of logits in a few words.

    Args:
        settings: Its settings, as JSON values.
    """
    return _ENCODINGS[settings["kind"]](settings)


def _sparse_text(settings: Mapping[str, Any]) -> str:
    values = f"{settings['bits']} bits" if settings["values"] == "codes" else settings["values"]
    return f"top {settings['top_k']}, {values}"


_ENCODINGS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "sparse": _sparse_text,
    "dense": lambda settings: f"dense {settings['values']}",
    "logits": lambda settings: f"log-odds, dense {settings['values']}",
    "transform": lambda settings: (
        f"transform, {settings['directions']} directions, {settings['refined']} classes refined"
    ),
}
