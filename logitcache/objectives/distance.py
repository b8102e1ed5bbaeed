"""Elementwise distances of two tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from torch.nn import functional

from logitcache.config import key_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

__all__ = ["METRICS", "Metric", "Normalize", "Reduction", "difference", "standardized"]

METRICS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": lambda a, b: (a - b).abs(),
    "l2": lambda a, b: (a - b).square(),
    "huber": lambda a, b: functional.smooth_l1_loss(a, b, reduction="none"),
    "cosine": lambda a, b: 1.0 - functional.cosine_similarity(a, b, dim=-1)[..., None],
}
"""Metrics by name; a new metric is one entry here."""

Metric = Annotated[str, key_of(lambda: METRICS)]
Normalize = Literal["none", "l2", "standardize"]
Reduction = Literal["mean", "sum"]

_FLAT = 1e-6  # as in teachers.reduce, so that student and cached maps are standardized alike


def difference(metric: Metric, a: Tensor, b: Tensor) -> Tensor:
    """Return the elementwise distance (..., D); for ``cosine`` that of vectors, (..., 1).

    ::

        l1      |a - b|
        l2      (a - b)^2
        huber   (a - b)^2 / 2 where |a - b| < 1, |a - b| - 1 / 2 elsewhere
        cosine  1 - a . b / (|a| |b|) over the last axis
    """
    return METRICS[metric](a, b)


def standardized(maps_BPD: Tensor) -> Tensor:
    """Return maps in which every channel has mean 0 and standard deviation 1 over P positions."""
    mean = maps_BPD.mean(1, keepdim=True)
    deviation = maps_BPD.std(1, keepdim=True, unbiased=False)
    return (maps_BPD - mean) / (deviation + _FLAT)
