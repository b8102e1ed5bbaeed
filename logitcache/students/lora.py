"""Low-rank adaptation (LoRA) of linear layers, and the merging of updates into their weights.

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

if TYPE_CHECKING:
    from collections.abc import Sequence

    from logitcache.networks.build import NetworkConfig

__all__ = ["LoraConfig", "LoraLinear", "add_lora", "merge_lora"]

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


class LoraLinear(nn.Module):
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

    def merged(self) -> nn.Linear:
        """Return a linear layer with the same output."""
        weight = self.base.weight + self._placed((self.lora_b @ self.lora_a).permute(2, 0, 1)).T
        plain = nn.Linear(
            self.base.in_features, self.base.out_features, bias=self.base.bias is not None
        )
        with torch.no_grad():
            plain.weight.copy_(weight)
            if self.base.bias is not None:
                plain.bias.copy_(self.base.bias)
        return plain.to(weight.device)

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
    others = [path for name, path in _OTHERS.items() if name in config.targets]
    blocks = getattr(network, "blocks", None)
    if not isinstance(blocks, nn.Sequential):
        raise _no_layer("blocks")
    for block in blocks:
        if updated:
            _replace(block, "attn.qkv", config.rank, len(_QKV), updated)
        for path in others:
            _replace(block, path, config.rank, 1, [0])
    return network


def merge_lora(network: nn.Module) -> nn.Module:
    """Replace layers with updates by linear layers, in place, and return the network."""
    for name, module in list(network.named_modules()):
        if isinstance(module, LoraLinear):
            network.set_submodule(name, module.merged())
    return network


def _replace(block: nn.Module, path: str, rank: int, slices: int, updated: list[int]) -> None:
    try:
        layer = block.get_submodule(path)
    except AttributeError:
        raise _no_layer(path) from None
    if not isinstance(layer, nn.Linear):
        raise _no_layer(path)
    block.set_submodule(path, LoraLinear(layer, rank, slices, updated))


def _no_layer(path: str) -> UsageError:
    return UsageError(
        f"the network has no linear layer {path} to update",
        where="student.surgery.lora",
        hint="choose a vision transformer of timm, or other targets",
    )
