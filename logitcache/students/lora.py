"""Low-rank adaptation (LoRA) of linear layers, and the merging of updates into their weights.

Source: WeCoLoRA (see ``depth.py``), section 3.2: its "enhanced" LoRA updates queries, keys, values,
the projection after attention and both layers of the MLP, without a scale; Hu et al. (2021), whose
LoRA it is, updates queries and values.

Shapes: B batch, N tokens, D inputs, E outputs, s slices of the outputs with an update each, r rank.
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
    """A frozen linear layer and a low-rank update of slices of its outputs.

    ::

        y = W x + b + B (A x)

    for each slice that is updated; A is drawn as a linear layer's weights are, B is zero at first.

    Args:
        base: The layer; frozen here.
        rank: r.
        slices: Into how many equal slices its outputs are cut.
        updated: Which of them are updated.
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
            nn.init.kaiming_uniform_(part, a=math.sqrt(5))

    def forward(self, x_BND: Tensor) -> Tensor:
        """Map (..., D) to (..., E)."""
        low = torch.einsum("...d,srd->...sr", x_BND, self.lora_a)
        update = torch.einsum("...sr,ser->...se", low, self.lora_b)
        out: Tensor = self.base(x_BND) + self._placed(update)
        return out

    def merged(self) -> nn.Linear:
        """Return the linear layer with the same output."""
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
        """Return (..., s, E / S) as (..., E), zero in slices without an update."""
        if len(self._updated) == self._slices:
            return updates.flatten(-2)
        whole = updates.new_zeros(*updates.shape[:-2], self._slices, updates.shape[-1])
        whole[..., self._updated, :] = updates
        return whole.flatten(-2)


def add_lora(network: nn.Module, config: LoraConfig, _: NetworkConfig) -> nn.Module:
    """Freeze a vision transformer and add updates to its blocks, in place.

    Raises:
        UsageError: It has no blocks with these layers.
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
        f"this network has no linear layer {path} to update",
        where="student.surgery.lora",
        hint="take a vision transformer of timm, or other targets",
    )
