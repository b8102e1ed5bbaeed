"""Low-rank adaptation (LoRA) of linear layers, whose updates are merged into their weights.

Source: WeCoLoRA (see ``depth.py``), section 3.2: its "enhanced" LoRA updates queries, keys, values,
the projection after attention and both layers of the MLP, without a scale; the original LoRA (Hu et
al., 2021) updates queries and values.

Shapes: B batch, N tokens, D inputs, E outputs, s slices of the outputs with updates, r rank.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from logitcache.config import Config
from logitcache.errors import UsageError
from logitcache.students.depth import blocks_of
from logitcache.students.training_layer import TrainingLayer, linear_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from logitcache.networks.build import NetworkConfig

__all__ = ["LoraConfig", "LoraLinear", "add_lora"]

Target = Literal["q", "k", "v", "proj", "fc1", "fc2"]

_QKV: tuple[Target, ...] = ("q", "k", "v")
_OTHERS: dict[Target, str] = {"proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}


class LoraConfig(Config):
    """Settings of low-rank adaptation.

    Attributes:
        rank: Rank of each update; 128 in WeCoLoRA.
        targets: Layers with an update in every block; all six in WeCoLoRA.
    """

    rank: Annotated[int, Field(ge=1)] = 128
    targets: list[Target] = Field(default=[*_QKV, *_OTHERS], min_length=1)


class LoraLinear(TrainingLayer):
    """A frozen linear layer with low-rank updates of slices of its outputs.

    ::

        y = W x + b + B (A x)

    for each updated slice; A is initialized like the weights of a linear layer, and B with zeros.

    Args:
        base: The linear layer; it is frozen in place.
        rank: Rank r of the updates.
        slices: Number of equal slices of the outputs.
        updated: Indices of the slices with an update.
    """

    def __init__(
        self, base: nn.Linear, rank: int, slices: int = 1, updated: Sequence[int] = (0,)
    ) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self._slices = slices
        self._updated = list(updated)
        width = base.out_features // slices
        self.lora_a = nn.Parameter(torch.empty(len(self._updated), rank, base.in_features))
        self.lora_b = nn.Parameter(torch.zeros(len(self._updated), width, rank))
        for part in self.lora_a:
            nn.init.kaiming_uniform_(part, a=math.sqrt(5))  # as torch.nn.Linear does

    def forward(self, x_BND: Tensor) -> Tensor:
        """Map (..., D) to (..., E)."""
        low = torch.einsum("...d,srd->...sr", x_BND, self.lora_a)
        update = torch.einsum("...sr,ser->...se", low, self.lora_b)
        out: Tensor = self.base(x_BND) + self._placed(update)
        return out

    def plain(self) -> nn.Linear:
        """Return a linear layer with the same output: the updates are merged into its weight."""
        updates_DE = self._placed((self.lora_b @ self.lora_a).permute(2, 0, 1))
        return linear_of(self.base.weight + updates_DE.T, self.base.bias)

    def _placed(self, updates: Tensor) -> Tensor:
        """Return updates (..., s, E / S) as (..., E), with zeros in slices without an update."""
        if len(self._updated) == self._slices:
            return updates.flatten(-2)
        whole = updates.new_zeros(*updates.shape[:-2], self._slices, updates.shape[-1])
        whole[..., self._updated, :] = updates
        return whole.flatten(-2)


def add_lora(network: nn.Module, config: LoraConfig, _: NetworkConfig) -> nn.Module:
    """Freeze a vision transformer and add updates to its blocks, in place.

    Raises:
        UsageError: The network has no blocks with these layers.
    """
    network.requires_grad_(False)
    updated = [index for index, name in enumerate(_QKV) if name in config.targets]
    layers = {"attn.qkv": (len(_QKV), updated)} if updated else {}
    layers |= {path: (1, [0]) for name, path in _OTHERS.items() if name in config.targets}
    for block in blocks_of(network, "student.surgery.lora"):
        modules = dict(block.named_modules())
        for path, (slices, parts) in layers.items():
            layer = modules.get(path)
            if not isinstance(layer, nn.Linear):
                raise UsageError(
                    f"the network has no linear layer {path} to update",
                    where="student.surgery.lora",
                    hint="choose a vision transformer of timm, or other targets",
                )
            block.set_submodule(path, LoraLinear(layer, config.rank, slices, parts))
    return network
