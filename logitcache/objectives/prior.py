"""Teacher features as prior: a part of the positions of a student is replaced by the teacher's.

Source: Qiu et al., "Better Teacher Better Student: Dynamic Prior Knowledge for Knowledge
Distillation" (DPK), ICLR 2023, after its description: code was not published. Width and number of
the blocks, and their positional embeddings, are choices of this module.

Shapes: B batch, P positions, D channels of the student, E of the teacher.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from logitcache.objectives.alignment import drawn_positions
from logitcache.objectives.similarity import cka

if TYPE_CHECKING:
    from logitcache.objectives.alignment import Pair

__all__ = ["Prior", "transformer_blocks"]

_HEADS = (8, 4, 2, 1)
_EXPANSION = 4


def transformer_blocks(width: int, heads: int, count: int) -> nn.Sequential:
    """Return blocks of attention and an MLP with norms before them: (B, L, D) to (B, L, D).

    Args:
        width: Number of channels, D.
        heads: Number of heads of the attention.
        count: Number of blocks.
    """
    return nn.Sequential(
        *(
            nn.TransformerEncoderLayer(
                width,
                heads,
                _EXPANSION * width,
                dropout=0.0,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(count)
        )
    )


class Prior(nn.Module):
    """DPK's projector: transformer blocks that reconstruct the teacher from a mixture of both.

    ::

        x_i = t_i at drawn i, W s_i elsewhere
        y = V norm(block(... block(x + e)))

    with W and V linear layers, e a learned embedding of positions, and blocks of attention and an
    MLP with norms before them. For every row and step a share of the positions is drawn: the given
    one, or

    ::

        ratio = 1 - CKA(s, t)

    linear and over the rows of the batch, with all positions of a row as one vector: the more a
    student differs from its teacher, the more it is given. All positions enter the loss. With
    several processes each computes the ratio of its own rows.

    Args:
        channels: Number of channels of the student, D.
        wanted: Number of channels of the teacher, E.
        positions: Number of positions, P.
        blocks: Number of blocks.
        ratio: Share of the positions that are the teacher's; None for one minus CKA.
    """

    def __init__(
        self, channels: int, wanted: int, positions: int, blocks: int, ratio: float | None
    ) -> None:
        super().__init__()
        self.align = nn.Linear(channels, wanted)
        self.embedding = nn.Parameter(torch.zeros(positions, wanted))
        nn.init.trunc_normal_(self.embedding, std=0.02)
        heads = next(heads for heads in _HEADS if wanted % heads == 0)
        self.blocks = transformer_blocks(wanted, heads, blocks)
        self.norm = nn.LayerNorm(wanted)
        self.out = nn.Linear(wanted, wanted)
        self._ratio = ratio

    def forward(self, pair: Pair) -> tuple[Tensor, Tensor]:
        """Return the reconstructed teacher (B, P, E) and the weights of positions (1, P)."""
        rows, patches = pair.student.shape[:2]
        count = (self.ratio(pair) * patches).round()
        given_BP = drawn_positions(rows, patches, count, pair.student.device)
        mixed_BPE = torch.where(given_BP[:, :, None], pair.teacher, self.align(pair.student))
        filled_BPE: Tensor = self.out(self.norm(self.blocks(mixed_BPE + self.embedding)))
        return filled_BPE, pair.counts

    @torch.no_grad()
    def ratio(self, pair: Pair) -> Tensor:
        """Return the share of the positions that are the teacher's, a scalar in [0, 1]."""
        if self._ratio is not None:
            return pair.teacher.new_tensor(self._ratio)
        difference = cka(pair.student.flatten(1)[None], pair.teacher.flatten(1)[None])
        return difference.clamp(0.0, 1.0)
