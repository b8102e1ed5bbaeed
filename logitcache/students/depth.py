"""Depth pruning: a vision transformer with a subset of its blocks.

Source: Grigore et al., "Weight Copy and Low-Rank Adaptation for Few-Shot Distillation of Vision
Transformers" (WeCoLoRA), WACV 2025, section 3.1: blocks 0, r, 2r … of a teacher.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Self

from pydantic import Field, model_validator
from timm.models import get_model_args
from torch import nn

from logitcache.config import Config
from logitcache.errors import UsageError
from logitcache.networks.build import build_network, num_classes_of

if TYPE_CHECKING:
    from logitcache.networks.build import NetworkConfig

__all__ = ["DepthConfig", "blocks_of", "keep_blocks"]

_BLOCKS = "blocks"


class DepthConfig(Config):
    """Settings of depth pruning.

    Attributes:
        every: Keep the blocks 0, every, 2 every …
        blocks: Indices of the blocks to keep, ascending, instead of ``every``.
    """

    every: Annotated[int, Field(ge=1)] | None = None
    blocks: list[Annotated[int, Field(ge=0)]] | None = Field(default=None, min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _from_number(cls, value: object) -> object:
        if isinstance(value, int):
            return {"every": value}
        return {"blocks": value} if isinstance(value, list) else value

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.every is None) == (self.blocks is None):
            raise ValueError("give either every or blocks, not both")
        if self.blocks is not None and self.blocks != sorted(set(self.blocks)):
            raise ValueError("blocks have to be ascending, without duplicates")
        return self

    def kept(self, depth: int) -> list[int]:
        """Return the indices of the blocks to keep.

        Args:
            depth: Number of blocks of the whole network.

        Raises:
            UsageError: The network does not have one of the blocks.
        """
        kept = list(range(0, depth, self.every)) if self.every else self.blocks or []
        if (self.every or 0) > depth:
            raise UsageError(
                f"of {depth} blocks, every {self.every} would keep the first one alone",
                where="student.surgery.depth.every",
                expected=f"1 to {depth}",
                hint="give blocks: [0] to keep a single block",
            )
        if kept[-1] >= depth:
            raise UsageError(
                f"the network has no block {kept[-1]}",
                where="student.surgery.depth",
                expected=f"blocks 0 to {depth - 1}",
            )
        return kept


def blocks_of(network: nn.Module, where: str) -> nn.Sequential:
    """Return the blocks of a vision transformer.

    Args:
        network: The network.
        where: The option, for messages.

    Raises:
        UsageError: It has no sequence of blocks.
    """
    blocks = getattr(network, _BLOCKS, None)
    if not isinstance(blocks, nn.Sequential):
        raise UsageError(
            "this surgery needs a network with a sequence of blocks",
            where=where,
            got=type(network).__name__,
            hint="choose a vision transformer of timm",
        )
    return blocks


def keep_blocks(network: nn.Module, depth: DepthConfig, config: NetworkConfig) -> nn.Module:
    """Return a network of the same architecture with fewer blocks and their weights.

    Args:
        network: The whole network; not changed.
        depth: Settings of depth pruning.
        config: Configuration of the network.

    Raises:
        UsageError: The network has no blocks, or too few.
    """
    kept = depth.kept(len(blocks_of(network, "student.surgery.depth")))
    # the network knows arguments that timm derived from the weights, such as the image size
    kwargs = {**get_model_args(network), **config.kwargs, "depth": len(kept)}
    fewer = config.model_copy(update={"kwargs": kwargs})
    shallow = build_network(fewer, num_classes_of(network), untrained=True)
    new = {f"{_BLOCKS}.{old}.": f"{_BLOCKS}.{index}." for index, old in enumerate(kept)}
    state = {}
    for name, tensor in network.state_dict().items():
        prefix = ".".join(name.split(".")[:2]) + "."
        if not name.startswith(f"{_BLOCKS}."):
            state[name] = tensor
        elif prefix in new:
            state[new[prefix] + name.removeprefix(prefix)] = tensor
    shallow.load_state_dict(state)
    return shallow
