"""Layers that a network has in training alone, and plain layers in their place for export."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import nn

from logitcache.errors import UsageError
from logitcache.networks.build import classifier_of

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["TrainingLayer", "linear_classifier", "linear_of", "plain_network"]


class TrainingLayer(nn.Module, ABC):
    """A layer that a surgery puts in the place of a plain one, for training."""

    @abstractmethod
    def plain(self) -> nn.Module:
        """Return a layer of torch with the same output in evaluation mode."""


def plain_network(network: nn.Module) -> nn.Module:
    """Replace all layers for training by plain ones, in place, and return the network."""
    for name, module in list(network.named_modules()):
        if isinstance(module, TrainingLayer):
            network.set_submodule(name, module.plain())
    return network


def linear_of(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Return a linear layer with copies of a weight (E, D) and a bias (E,)."""
    outputs, inputs = weight.shape
    linear = nn.Linear(inputs, outputs, bias=bias is not None, device=weight.device)
    with torch.no_grad():
        linear.weight.copy_(weight)
        if bias is not None:
            linear.bias.copy_(bias)
    return linear


def linear_classifier(network: nn.Module, what: str, where: str) -> tuple[str, nn.Linear]:
    """Return the name and the module of a classifier that is one linear layer.

    Args:
        network: A network of timm.
        what: What needs it, for messages.
        where: The option, for messages.

    Raises:
        UsageError: It is another module, or there are several.
    """
    found = classifier_of(network)
    for name, module in network.named_modules():
        if module is found and isinstance(module, nn.Linear):
            return name, module
    raise UsageError(
        f"{what} needs a network whose classifier is one linear layer",
        where=where,
        expected="torch.nn.Linear",
        got=type(found).__name__,
        hint="choose another network",
    )
