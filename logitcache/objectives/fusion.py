"""Selective fusion: a student's maps of several depths, mixed from the deepest to the shallowest.

Source: Liu et al., "TransKD: Transformer Knowledge Distillation for Efficient Semantic
Segmentation", 2022, cross selective fusion, and its code; the shares of two maps are those of
selective kernel networks (Li et al., CVPR 2019).

Shapes: B batch, P positions, H and W sides of a map, D channels of the student, E of the teacher, F
channels of the fusion.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from logitcache.objectives.alignment import as_map, as_tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from logitcache.objectives.alignment import Pair

__all__ = ["SelectiveFusion"]

_REDUCTION = 16
_FEWEST_HIDDEN = 32


class SelectiveFusion(nn.Module):
    """TransKD's projector of all pairs of layers together, which are given from shallow to deep.

    ::

        a_i = norm(conv1x1(s_i))
        f_i = w_i a_i + (1 - w_i) up(f_i+1), f of the deepest pair is its a
        P(s)_i = norm(conv3x3(f_i))

    with up the nearest interpolation to the map of pair i, norm batch norm, and w_i the shares of
    every row and channel: the softmax over two linear layers of relu(norm(linear(m))), m the mean
    over positions of a_i + up(f_i+1). One difference to the code: for a batch of one row it has
    another, separately trained layer instead of the one with the norm; here batches have at least
    two rows.

    Args:
        channels: For each pair the numbers of channels of student and teacher, D and E.
        width: Number of channels of the fusion, F.
    """

    def __init__(self, channels: Sequence[tuple[int, int]], width: int) -> None:
        super().__init__()
        self.entries = nn.ModuleList(_normed(own, width, 1) for own, _ in channels)
        self.shares = nn.ModuleList(_Shares(width) for _ in channels[1:])
        self.exits = nn.ModuleList(_normed(width, wanted, 3) for _, wanted in channels)

    def forward(self, pairs: list[Pair]) -> list[tuple[Tensor, Tensor]]:
        """Return for every pair the projected student (B, P, E) and weights of positions (1, P)."""
        found: list[tuple[Tensor, Tensor]] = []
        fused_BFHW: Tensor | None = None
        for index in reversed(range(len(pairs))):
            pair = pairs[index]
            assert pair.grid is not None  # checked when it was built
            own_BFHW: Tensor = self.entries[index](as_map(pair.student, pair.grid))
            if fused_BFHW is None:
                fused_BFHW = own_BFHW
            else:
                deeper_BFHW = functional.interpolate(fused_BFHW, own_BFHW.shape[-2:])
                shares_BF11: Tensor = self.shares[index](own_BFHW + deeper_BFHW)
                fused_BFHW = torch.lerp(deeper_BFHW, own_BFHW, shares_BF11)
            found.insert(0, (as_tokens(self.exits[index](fused_BFHW)), pair.counts))
        return found


class _Shares(nn.Module):
    """Share of the first of two maps, by row and channel, from their sum."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = max(width // _REDUCTION, _FEWEST_HIDDEN)
        self.squeeze = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(width, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
        )
        self.scores = nn.Conv2d(hidden, 2 * width, 1)

    def forward(self, sum_BFHW: Tensor) -> Tensor:
        """Return shares (B, F, 1, 1)."""
        scores_B2F: Tensor = self.scores(self.squeeze(sum_BFHW)).unflatten(1, (2, -1))
        return scores_B2F.softmax(1)[:, 0]


def _normed(channels: int, wanted: int, side: int) -> nn.Sequential:
    """Return a convolution of this side, followed by batch norm."""
    convolution = nn.Conv2d(channels, wanted, side, padding=side // 2, bias=False)
    nn.init.kaiming_uniform_(convolution.weight, a=1)
    return nn.Sequential(convolution, nn.BatchNorm2d(wanted))
