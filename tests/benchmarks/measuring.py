"""Two things measured against each other in one process, in turns, and the rows they become.

Machines are noisy: a ratio is the median of the ratios of neighboring rounds, and its spread, the
quartiles, stands next to it.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

__all__ = ["Measurement", "backward", "ratio_of_times", "seconds_of"]


@dataclass(frozen=True)
class Measurement:
    """One number and what it should be.

    Attributes:
        name: What was measured.
        value: The median.
        unit: Of the value; ``x`` for a ratio.
        low: Lower quartile.
        high: Upper quartile.
        target: The bound, or None where there is none.
        at_most: Whether the bound is an upper one.
        note: Absolute figures behind a ratio.
    """

    name: str
    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    target: float | None = None
    at_most: bool = True
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the value keeps the bound."""
        if self.target is None:
            return None
        return self.value <= self.target if self.at_most else self.value >= self.target

    def to_json(self) -> dict[str, Any]:
        """Return the row as a document."""
        return {**asdict(self), "met": self.met}


def backward(loss: Callable[[], Tensor], *leaves: Tensor) -> Callable[[], object]:
    """Return forward and backward of a scalar as one call."""
    return lambda: torch.autograd.grad(loss(), leaves)


def seconds_of(
    function: Callable[[], object], repeat: int, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Return the seconds of one call, averaged over a few."""
    start = clock()
    for _ in range(repeat):
        function()
    return (clock() - start) / repeat


def ratio_of_times(
    name: str,
    ours: Callable[[], object],
    reference: Callable[[], object],
    *,
    rounds: int,
    repeat: int = 1,
    target: float | None = None,
    inverse: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> Measurement:
    """Measure the time of ours over that of a reference, in turns.

    Args:
        name: Of the row.
        ours: What is measured.
        reference: What it is compared with.
        rounds: How many neighboring pairs.
        repeat: Calls of each in a round.
        target: The bound.
        inverse: Whether to give reference over ours: how many times faster ours is.
        clock: Wall time by default; ``time.process_time`` for processor time.
    """
    ours(), reference()
    pairs = []
    for number in range(rounds):
        first, second = (ours, reference) if number % 2 else (reference, ours)
        one, two = (seconds_of(each, repeat, clock) for each in (first, second))
        pairs.append((one, two) if number % 2 else (two, one))
    ratios = [theirs / own if inverse else own / theirs for own, theirs in pairs]
    low, median, high = statistics.quantiles(ratios, n=4)
    own_ms, theirs_ms = (1e3 * statistics.median(column) for column in zip(*pairs, strict=True))
    return Measurement(
        name,
        median,
        "x",
        low,
        high,
        target,
        at_most=not inverse,
        note=f"{own_ms:.2f} ms against {theirs_ms:.2f} ms",
    )
