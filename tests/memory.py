"""The most memory that a computation holds at once, by the profiler's account."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.profiler import ProfilerActivity, profile

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

__all__ = ["peak_bytes"]


def peak_bytes(loss: Callable[[], Tensor], *leaves: Tensor) -> int:
    """Return the most bytes that a scalar and its gradient at the leaves allocated at once."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        torch.autograd.grad(loss(), leaves)
    current = peak = 0
    results: Any = recorded.profiler
    for event in results.kineto_results.events():
        if event.name() == "[memory]":
            current += event.nbytes()
            peak = max(peak, current)
    return peak
