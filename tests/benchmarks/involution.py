"""Involution against the published way: unfold into K x K copies, then multiply and sum."""

from __future__ import annotations

import torch

from logitcache.networks.involution import involve
from tests.benchmarks.measuring import Measurement, backward, ratio_of_times
from tests.memory import peak_bytes
from tests.networks.naive_rednet import unfold_involution

_SHAPES = ((16, 64, 56), (16, 128, 28), (16, 256, 14), (16, 512, 7))  # RedNet-50's four stages
_GROUP = 16


def measure() -> list[Measurement]:
    """Return the speed-up and the share of memory of forward and backward together."""
    rows = []
    for batch, channels, side in _SHAPES:
        torch.manual_seed(0)
        x = torch.randn(batch, channels, side, side, requires_grad=True)
        kernel = torch.randn(batch, channels // _GROUP, 49, side, side, requires_grad=True)

        def ours(x: torch.Tensor = x, k: torch.Tensor = kernel) -> torch.Tensor:
            return involve(x, k, 1).sum()

        def naive(x: torch.Tensor = x, k: torch.Tensor = kernel) -> torch.Tensor:
            return unfold_involution(x, k, 1).sum()

        name = f"involution 7x7, ({batch}, {channels}, {side}, {side})"
        pair = backward(ours, x, kernel), backward(naive, x, kernel)
        rows.append(ratio_of_times(f"{name}: times faster", *pair, rounds=7, inverse=True))
        mine, theirs = peak_bytes(ours, x, kernel), peak_bytes(naive, x, kernel)
        note = f"{mine / 2**20:.0f} MiB against {theirs / 2**20:.0f} MiB"
        rows.append(Measurement(f"{name}: memory", mine / theirs, "x", note=note))
    return rows
