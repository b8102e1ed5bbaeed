"""Students and teachers made by hand, for the losses on features."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from logitcache.batch import Features, Outputs, TargetBatch

if TYPE_CHECKING:
    from torch import Tensor


def noise(*shape: int, seed: int) -> Tensor:
    """Return float64 numbers around zero."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def tokens(values: Tensor, *, prefix: int = 0, **fields: Any) -> Features:
    """Return tokens, whose patches are a square if they can be."""
    patches = values.shape[1] - prefix
    side = round(patches**0.5)
    grid = side if side * side == patches else None
    return Features(values, "NLC", **{"grid": grid, "prefix_tokens": prefix, **fields})


def maps(values: Tensor, **fields: Any) -> Features:
    """Return a square map."""
    return Features(values, "NCHW", grid=values.shape[2], **fields)


def vector(values: Tensor) -> Features:
    """Return a vector."""
    return Features(values, "vector")


def targets_of(**features: Features) -> TargetBatch:
    """Return targets with features at the taps of a teacher called t."""
    rows = len(next(iter(features.values())).values)
    labels = torch.zeros(rows, dtype=torch.long)
    named = {f"t/{tap}": held for tap, held in features.items()}
    return TargetBatch(torch.arange(rows), labels, {}, features=named)


def outputs_of(**features: Features) -> Outputs:
    """Return a student's answer with features at taps."""
    rows = len(next(iter(features.values())).values)
    return Outputs(torch.zeros(rows, 3), features)
