"""Classifier over the maps of several networks: multi-scale extraction, dual attention and fusion.

Source: "Multi-scale Feature Extraction and Fusion for Online Knowledge Distillation" (MFEF), 2022,
after its abstract and what it builds on: Res2Net (Gao et al., 2019) for the extraction, CBAM (Woo
et al., ECCV 2018) for the attention, and feature fusion learning (FFL; Kim et al., ICPR 2020) for
the fusion. Code was not published; widths and activations are choices of this module.

Shapes: B batch, H and W sides of a map, D channels of a network, G channels of a group, M channels
of all networks, C classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["DualAttention", "FusedHead", "MultiScale"]

_REDUCTION = 16
_FEWEST_HIDDEN = 4
_WINDOW = 7


class MultiScale(nn.Module):
    """Features of several receptive fields: groups of channels through a cascade of convolutions.

    ::

        y_1 = x_1;  y_2 = K_2(x_2);  y_i = K_i(x_i + y_i-1)

    with x_i the i-th group of the channels and K_i a 3x3 convolution, batch norm and ReLU; the
    groups y are concatenated.

    Args:
        channels: Number of channels, D.
        scales: Number of groups, which divides it.
    """

    def __init__(self, channels: int, scales: int) -> None:
        super().__init__()
        group = channels // scales
        self.scales = scales
        self.cascade = nn.ModuleList(
            nn.Sequential(_convolution(group, group, 3), nn.BatchNorm2d(group), nn.ReLU())
            for _ in range(scales - 1)
        )

    def forward(self, maps_BDHW: Tensor) -> Tensor:
        """Return maps of the same shape."""
        first_BGHW, *others = maps_BDHW.chunk(self.scales, 1)
        found = [first_BGHW]
        for index, (group_BGHW, layer) in enumerate(zip(others, self.cascade, strict=True)):
            found.append(layer(group_BGHW + found[-1] if index else group_BGHW))
        return torch.cat(found, 1)


class DualAttention(nn.Module):
    """Attention to channels, then to positions.

    ::

        y = x * sigmoid(V relu(W mean(x)));  z = y * sigmoid(conv7x7(mean_c(y), max_c(y)))

    with the mean over positions and W, V linear layers in the first, mean and maximum over channels
    in the second.

    Args:
        channels: Number of channels, D.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(channels // _REDUCTION, _FEWEST_HIDDEN)
        self.channels = nn.Sequential(
            nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels), nn.Sigmoid()
        )
        self.positions = nn.Sequential(_convolution(2, 1, _WINDOW), nn.Sigmoid())

    def forward(self, maps_BDHW: Tensor) -> Tensor:
        """Return maps of the same shape."""
        channels_BD: Tensor = self.channels(maps_BDHW.mean((2, 3)))
        weighted_BDHW = maps_BDHW * channels_BD[:, :, None, None]
        summary_B2HW = torch.stack([weighted_BDHW.mean(1), weighted_BDHW.amax(1)], 1)
        positions_B1HW: Tensor = self.positions(summary_B2HW)
        return weighted_BDHW * positions_B1HW


class FusedHead(nn.Module):
    """Logits from the maps of several networks.

    ::

        x = concatenation of attention_n(multi_scale_n(x_n))
        y = linear(mean(relu(norm(conv1x1(relu(norm(depthwise conv3x3(x))))))))

    with the mean over positions. Without attention and with a single scale it is the fusion module
    of FFL.

    Args:
        channels: Number of channels of each network's map.
        width: Number of channels of the fusion.
        classes: Number of classes, C.
        scales: Number of groups of channels of the multi-scale extraction; 1 for none.
        attention: Whether each map goes through dual attention.
    """

    def __init__(
        self, channels: Sequence[int], width: int, classes: int, *, scales: int, attention: bool
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(
                MultiScale(own, scales), DualAttention(own) if attention else nn.Identity()
            )
            for own in channels
        )
        total = sum(channels)
        self.fusion = nn.Sequential(
            _convolution(total, total, 3, groups=total),
            nn.BatchNorm2d(total),
            nn.ReLU(),
            _convolution(total, width, 1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(width, classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return logits (B, C).

        Args:
            maps: Map (B, D, H, W) of each network, all with the same H and W.
        """
        branches = zip(self.branches, maps, strict=True)
        together_BMHW = torch.cat([branch(map_BDHW) for branch, map_BDHW in branches], 1)
        logits_BC: Tensor = self.classifier(self.fusion(together_BMHW).mean((2, 3)))
        return logits_BC


def _convolution(channels: int, wanted: int, side: int, *, groups: int = 1) -> nn.Conv2d:
    """Return a convolution without a bias that keeps the sides of a map."""
    return nn.Conv2d(channels, wanted, side, padding=side // 2, groups=groups, bias=False)
