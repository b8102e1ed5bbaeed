"""A transformer with some of its blocks, and the weights of those.

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
from logitcache.networks.build import build_network

if TYPE_CHECKING:
    from logitcache.networks.build import NetworkConfig

__all__ = ["DepthConfig", "shallower"]

_BLOCKS = "blocks"


class DepthConfig(Config):
    """Which blocks are kept.

    Attributes:
        every: Blocks 0, every, 2 every …
        blocks: Or these, ascending.
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
            raise ValueError("say which blocks are kept by every or by blocks")
        if self.blocks is not None and self.blocks != sorted(set(self.blocks)):
            raise ValueError("blocks are named once each, ascending")
        return self

    def kept(self, depth: int) -> list[int]:
        """Return the blocks that are kept of so many.

        Raises:
            UsageError: There are not so many.
        """
        kept = list(range(0, depth, self.every)) if self.every else self.blocks or []
        if kept[-1] >= depth:
            raise UsageError(
                f"no block {kept[-1]}",
                where="student.surgery.depth",
                expected=f"blocks 0 to {depth - 1}",
            )
        return kept


def shallower(network: nn.Module, config: NetworkConfig, depth: DepthConfig) -> nn.Module:
    """Return a network of the same kind with fewer blocks, which holds the weights of the kept.

    Args:
        network: The whole network; left as it is.
        config: What it was built from.
        depth: Which blocks are kept.

    Raises:
        UsageError: It has no blocks, or not so many.
    """
    blocks = getattr(network, _BLOCKS, None)
    if not isinstance(blocks, nn.Sequential):
        raise UsageError(
            "this network has no row of blocks to choose from",
            where="student.surgery.depth",
            got=config.model,
            hint="take a vision transformer",
        )
    kept = depth.kept(len(blocks))
    # Arguments that followed from the weights, the image size say, are in the network only.
    kwargs = {**get_model_args(network), **config.kwargs, "depth": len(kept)}
    fewer = config.model_copy(update={"kwargs": kwargs})
    classes = int(network.num_classes)  # type: ignore[arg-type]  # a module's attributes are untyped
    shallow = build_network(fewer, classes, untrained=True)
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
