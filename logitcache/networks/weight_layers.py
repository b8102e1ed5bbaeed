"""Convolution and linear layers of a network by name, and how many bits their weights may have."""

from __future__ import annotations

from typing import Any

from torch import nn

from logitcache.errors import UsageError

__all__ = ["FEWEST_BITS", "MOST_BITS", "weight_layers"]

FEWEST_BITS, MOST_BITS = 2, 8
"""Of a quantized weight."""


def weight_layers(network: nn.Module, where: str) -> dict[str, nn.Conv2d | nn.Linear]:
    """Return the convolution and linear layers of a network by name, without its classifiers.

    Args:
        network: Any network; classifiers are those of timm's ``get_classifier``.
        where: The option, for messages.

    Raises:
        UsageError: There are none.
    """
    get: Any = getattr(network, "get_classifier", lambda: None)
    found = get()
    classifiers = found if isinstance(found, tuple | list) else [found]
    modules = [c.modules() for c in classifiers if isinstance(c, nn.Module)]
    inside = {id(module) for each in modules for module in each}
    layers = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and id(module) not in inside
    }
    if not layers:
        raise UsageError(
            "the network has no convolution or linear layer to quantize",
            where=where,
            got=type(network).__name__,
        )
    return layers
