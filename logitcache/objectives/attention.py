"""Projectors from a map to relations between its positions, as an attention module has them.

Source: Liu et al., "Cross-Architecture Knowledge Distillation" (CAKD), ACCV 2022, section 3.1, and
a description of its code: queries, keys and values of a student are 3x3 convolutions of its map.

Shapes: B batch, P positions, D channels of the student, W width of queries and keys.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from logitcache.objectives.alignment import as_map, as_tokens

if TYPE_CHECKING:
    from logitcache.objectives.alignment import Pair

__all__ = ["PositionProducts"]


class PositionProducts(nn.Module):
    """Scaled inner products of vectors at all pairs of positions.

    ::

        x_ij = q_i . k_j / sqrt(W)

    with q and k 3x3 convolutions of the student's map, with zeros around it; for products of values
    both are the same one. At a drawn share of the pairs x is the teacher's own, so that these have
    no part in a loss: the partially crossed attention of the paper, on products instead of on
    queries and keys.

    Args:
        channels: Number of channels of the student, D.
        width: Number of channels of queries and keys, W.
        same: Whether q and k are the same convolution.
        ratio: Share of the pairs that are the teacher's.
    """

    def __init__(self, channels: int, width: int, *, same: bool, ratio: float) -> None:
        super().__init__()
        self.queries = nn.Conv2d(channels, width, 3, padding=1)
        self.keys = None if same else nn.Conv2d(channels, width, 3, padding=1)
        self._ratio = ratio

    def forward(self, pair: Pair) -> tuple[Tensor, Tensor]:
        """Return the products (B, n, P) and the weights of positions (1, n)."""
        assert pair.grid is not None  # checked when it was built
        maps_BDHW = as_map(pair.student, pair.grid)
        queries_BPW = as_tokens(self.queries(maps_BDHW))
        keys_BPW = queries_BPW if self.keys is None else as_tokens(self.keys(maps_BDHW))
        products_BPP = queries_BPW @ keys_BPW.transpose(1, 2) / math.sqrt(queries_BPW.shape[2])
        products = pair.picked(products_BPP)
        if self._ratio > 0:
            crossed = torch.rand_like(products) < self._ratio
            products = torch.where(crossed, pair.teacher, products)
        return products, pair.counts
