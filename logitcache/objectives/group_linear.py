"""A projector with a linear layer for each neighborhood of a map.

Source: Liu et al., "Cross-Architecture Knowledge Distillation" (CAKD), ACCV 2022, section 3.2: the
196 positions of a 14 x 14 grid are divided into neighborhoods of 4 x 4, and each of these 16 groups
has a linear layer. The last row and column of neighborhoods are smaller.

Shapes: B batch, P positions, n cached ones, D channels of the student, E of the teacher.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from logitcache.objectives.alignment import Pair

__all__ = ["GroupLinear", "neighborhoods"]


def neighborhoods(grid: int, side: int) -> Tensor:
    """Return the number of the neighborhood of every position, row by row, int64 (P,).

    Args:
        grid: Side of the square grid of positions.
        side: Side of a neighborhood; those at the end of a row or column may be smaller.
    """
    cells = torch.arange(grid) // side
    return (cells[:, None] * (int(cells[-1]) + 1) + cells).flatten()


class GroupLinear(nn.Module):
    """A linear layer for each neighborhood of positions, after dropout.

    Args:
        channels: Number of channels of the student, D.
        wanted: Number of channels of the teacher, E.
        grid: Side of the square grid of positions.
        side: Side of a neighborhood.
        dropout: Probability with which an input is set to zero.
    """

    _order: Tensor
    _back: Tensor

    def __init__(self, channels: int, wanted: int, grid: int, side: int, dropout: float) -> None:
        super().__init__()
        groups_P = neighborhoods(grid, side)
        counts = groups_P.bincount()
        order_P = groups_P.argsort(stable=True)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(nn.Linear(channels, wanted) for _ in counts)
        self._counts = counts.tolist()
        # buffers follow the module to its device; both are functions of the arguments
        self.register_buffer("_order", order_P, persistent=False)
        self.register_buffer("_back", order_P.argsort(), persistent=False)

    def forward(self, pair: Pair) -> tuple[Tensor, Tensor]:
        """Return the projected student (B, n, E) and the weights of positions (1, n)."""
        parts = self.dropout(pair.student)[:, self._order].split(self._counts, 1)
        projected = [layer(part) for layer, part in zip(self.layers, parts, strict=True)]
        return pair.picked(torch.cat(projected, 1)[:, self._back]), pair.counts
