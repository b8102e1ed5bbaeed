"""Reconstruction of dropped patches: masked autoencoders.

Source: He et al., "Masked Autoencoders Are Scalable Vision Learners" (MAE), CVPR 2022, and its
code. The student is the encoder; the decoder is trained with it and not exported.

Shapes: B batch, P patches, n visible ones, p prefix tokens, D channels of the student, W of the
decoder, V values of a patch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field, model_validator
from timm.layers import build_sincos2d_pos_embed
from torch import Tensor, nn

from logitcache.batch import PIXELS
from logitcache.errors import UsageError
from logitcache.objectives.alignment import wide
from logitcache.objectives.fitted import created
from logitcache.objectives.prior import transformer_blocks
from logitcache.objectives.term import Needs, TermConfig

if TYPE_CHECKING:
    from typing import Self

    from logitcache.batch import Features, Outputs, TargetBatch

__all__ = ["Reconstruct", "ReconstructConfig", "patch_values"]

_Count = Annotated[int, Field(ge=1)]


class ReconstructConfig(TermConfig):
    """Reconstruction of the pixels of dropped patches by a decoder that is not exported.

    Attributes:
        weight: Weight of this term in the sum.
        student: Student layer with the tokens of the visible patches.
        width: Channels of the decoder, a multiple of 4 and of ``heads``.
        depth: Transformer blocks of the decoder.
        heads: Heads of their attention.
        normalize: Whether the values of each patch get mean 0 and standard deviation 1, as targets.
    """

    student: str = "norm"
    width: _Count = 512
    depth: _Count = 8
    heads: _Count = 16
    normalize: bool = True

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.width % 4 or self.width % self.heads:
            raise ValueError(
                f"a width of {self.width} with {self.heads} heads: expected a multiple of 4 and of "
                "heads"
            )
        return self

    @property
    def needs(self) -> Needs:
        """Required targets and layers: the images without some patches, and a student layer."""
        return Needs(taps=(self.student,), pixels=True, dropped_patches=True)


class Reconstruct(nn.Module):
    """Mean squared error of the pixels of dropped patches.

    ::

        L = sum_i m_i mean_v (y_iv - x_iv)^2 / sum_i m_i, mean over rows

    with x_i the values of patch i, m_i 1 where it is dropped and 0 where it is visible, and

    ::

        y = O norm(block(... block(z + e)));  z_i = A s_i at visible patches, a learned token else

    with s the student's tokens, A and O linear layers and e sine and cosine embeddings of
    positions, 0 for prefix tokens. With ``normalize`` the mean of x_i is subtracted, and it is
    divided by the root of its variance (with V - 1) plus 1e-6.

    Args:
        config: The layer and the decoder.
    """

    embedding: Tensor

    def __init__(self, config: ReconstructConfig) -> None:
        super().__init__()
        self.config = config
        self.decoder: nn.ModuleDict | None = None

    def fit(self, outputs: Outputs, targets: TargetBatch) -> None:
        """Create the decoder.

        Args:
            outputs: Example of outputs of the student, one row, of all patches.
            targets: Example of targets, one row, with pixels.

        Raises:
            UsageError: The layer does not have tokens of patches that divide the image.
        """
        tokens, config = outputs.tap(self.config.student), self.config
        side, grid = targets.features[PIXELS].values.shape[-1], tokens.grid
        if tokens.layout != "NLC" or grid is None or side % grid:
            raise UsageError(
                "this student layer does not have tokens of the patches of an image",
                where=self._where,
                expected=f"tokens of a square grid that divides images of {side} pixels",
                got=f"{tokens.layout} {tuple(tokens.values.shape[1:])}",
                hint="choose a block of a vision transformer, or its norm",
            )
        values = 3 * (side // grid) ** 2
        embedding = build_sincos2d_pos_embed([grid, grid], config.width, interleave_sin_cos=False)
        prefix = embedding.new_zeros(tokens.prefix_tokens, config.width)
        self.register_buffer("embedding", torch.cat([prefix, embedding]), persistent=False)
        self.mask_token = nn.Parameter(0.02 * torch.randn(config.width))
        self.decoder = nn.ModuleDict(
            {
                "align": nn.Linear(tokens.values.shape[2], config.width),
                "blocks": transformer_blocks(config.width, config.heads, config.depth),
                "norm": nn.LayerNorm(config.width),
                "out": nn.Linear(config.width, values),
            }
        )

    def forward(self, outputs: Outputs, targets: TargetBatch) -> Tensor:
        """Return the loss, a scalar."""
        tokens = outputs.tap(self.config.student)
        created(self.decoder, "decoder", self._where)
        if PIXELS not in targets.features:
            raise UsageError(
                "the batch has no pixels", where=self._where, hint="set pixels=True in the loader"
            )
        if tokens.positions is None:
            raise UsageError(
                "there are no dropped patches to reconstruct",
                where=self._where,
                expected="views that drop patches",
                got="all patches",
                hint="set views.patch_drop_rate, in precompute or, without a cache, in train",
            )
        assert tokens.grid is not None  # checked when the decoder was built
        wanted_BPV = patch_values(wide(targets.features[PIXELS].values), tokens.grid)
        if self.config.normalize:
            deviation = (wanted_BPV.var(2, keepdim=True) + 1e-6).sqrt()
            wanted_BPV = (wanted_BPV - wanted_BPV.mean(2, keepdim=True)) / deviation
        each_BP = (wide(self._decoded(tokens)) - wanted_BPV).square().mean(2)
        dropped_BP = torch.ones_like(each_BP).scatter(1, tokens.positions, 0.0)
        return (each_BP * dropped_BP).sum() / dropped_BP.sum()

    @property
    def _where(self) -> str:
        return f"objectives.reconstruct of {self.config.student}"

    def _decoded(self, tokens: Features) -> Tensor:
        """Return the predicted values of all patches, (B, P, V)."""
        assert self.decoder is not None
        assert tokens.positions is not None
        aligned_BLW = self.decoder["align"](tokens.values)
        prefix = tokens.prefix_tokens
        rows, _, width = aligned_BLW.shape
        masks_BPW = self.mask_token.to(aligned_BLW.dtype).expand(
            rows, len(self.embedding) - prefix, width
        )
        index = tokens.positions[:, :, None].expand(-1, -1, width)
        filled_BPW = masks_BPW.scatter(1, index, aligned_BLW[:, prefix:])
        whole_BLW = torch.cat([aligned_BLW[:, :prefix], filled_BPW], 1) + self.embedding
        decoded: Tensor = self.decoder["out"](
            self.decoder["norm"](self.decoder["blocks"](whole_BLW)[:, prefix:])
        )
        return decoded


def patch_values(images_B3SS: Tensor, grid: int) -> Tensor:
    """Return the values of every patch, (B, P, V): rows, columns, then channels, as in MAE's code.

    Args:
        images_B3SS: Images (B, 3, S, S).
        grid: Patches along a side, a divisor of S.
    """
    rows, channels, side = images_B3SS.shape[:3]
    edge = side // grid
    cut = images_B3SS.reshape(rows, channels, grid, edge, grid, edge)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(rows, grid**2, edge**2 * channels)
