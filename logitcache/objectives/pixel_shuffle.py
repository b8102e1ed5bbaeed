"""Super-resolution of a student's map: a projector to a larger grid by pixel shuffle.

Source: Guo et al., "Pixel Distillation: Cost-flexible Distillation across Image Sizes and
Heterogeneous Networks", TPAMI 2024 (2112.09532), ISRD: the image at full resolution from the early
features of a student that is shown a low one; the pixel shuffle is that of Shi et al., "Real-Time
Single Image and Video Super-Resolution Using an Efficient Sub-Pixel Convolutional Neural Network",
CVPR 2016.

Shapes: B batch, P patches of the student, D channels of the student, E of the teacher, s factor.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import nn

from logitcache.objectives.alignment import as_map, as_tokens

if TYPE_CHECKING:
    from torch import Tensor

    from logitcache.objectives.alignment import Pair

__all__ = ["PixelShuffle"]


class PixelShuffle(nn.Module):
    """A 1x1 convolution, each of whose outputs becomes a square of positions, and a PReLU.

    ::

        y_e(s h + i, s w + j) = prelu_e((W x(h, w))_(e s^2 + i s + j)),   0 <= i, j < s

    The student stays on its own grid; the teacher's is s times larger.

    Args:
        channels: Number of channels of the student, D.
        wanted: Number of channels of the teacher, E.
        factor: s.
    """

    def __init__(self, channels: int, wanted: int, factor: int) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Conv2d(channels, wanted * factor**2, 1, bias=False),
            nn.PixelShuffle(factor),
            nn.PReLU(wanted),
        )

    def forward(self, pair: Pair) -> tuple[Tensor, Tensor]:
        """Return the projected student (B, P s^2, E) and the weights of positions (1, P s^2)."""
        side = math.isqrt(pair.student.shape[1])
        larger_BEHW: Tensor = self.network(as_map(pair.student, side))
        return as_tokens(larger_BEHW), pair.counts
