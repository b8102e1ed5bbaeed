"""Networks without weights, on torch's device ``meta``: shapes, parameters and operations."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from timm.models import get_model_args
from torch.utils.flop_counter import FlopCounterMode

from logitcache.errors import UsageError
from logitcache.networks.build import build_network, input_spec, num_classes_of
from logitcache.networks.forms import FORMS, form_of
from logitcache.networks.forward import evaluating
from logitcache.students.build import converted
from logitcache.students.surgery import SURGERIES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from logitcache.networks.build import NetworkConfig
    from logitcache.students.build import StudentConfig

__all__ = [
    "exported_shape",
    "forward_flops",
    "image_shape",
    "input_size",
    "network_shape",
    "shown",
    "student_shape",
]


def network_shape(
    config: NetworkConfig, earlier: Mapping[str, nn.Module], num_classes: int | None = None
) -> nn.Module:
    """Return a network without memory for its weights; nothing is read or downloaded.

    Args:
        config: Settings.
        earlier: Networks of earlier stages, and those that the pipeline describes, by name.
        num_classes: Number of classes; that of the earlier stage or of timm by default.

    Raises:
        UsageError: The name is unknown, or is a network that only its files describe.
    """
    with torch.device("meta"):
        if config.model in earlier:
            network = copy.deepcopy(earlier[config.model])
            reset: Any = network.reset_classifier
            if num_classes is not None and num_classes != num_classes_of(network):
                reset(num_classes)
            return network
        if form_of(config.model).own_weights or not form_of(config.model).student:
            raise UsageError(
                "a dry run knows the networks of timm and of earlier stages only",
                where=config.model,
                expected=f"{FORMS['timm'].notation}, or stage:NAME",
                hint="name a network of timm of the same size: --set 'networks={NAME: {model: …}}'",
            )
        plain = config.model_copy(update={"weights": None})
        return build_network(plain, num_classes, untrained=True)


def student_shape(
    config: StudentConfig, earlier: Mapping[str, nn.Module], num_classes: int
) -> nn.Module:
    """Return a student without memory for its weights, after its surgeries."""
    network = network_shape(config, earlier, num_classes)
    cfg: Any = network.pretrained_cfg
    kwargs = {**get_model_args(network), **config.kwargs} if config.model in earlier else {}
    named = {"model": cfg["architecture"], "weights": None, "kwargs": kwargs or config.kwargs}
    with torch.device("meta"):
        for name, settings in config.surgery.chosen.items():
            network = SURGERIES[name].prepare(network, settings, config.model_copy(update=named))
    return network


def exported_shape(network: nn.Module, size: int) -> nn.Module:
    """Return what a trained student is exported as: without its surgeries, for images of a size."""
    with torch.device("meta"):
        exported = converted(network)
    cfg: Any = exported.pretrained_cfg
    cfg["input_size"] = (3, size, size)
    return exported


def input_size(network: nn.Module, config: NetworkConfig) -> int:
    """Return the side of the network's input in pixels."""
    return input_spec(network, config.size).size


def forward_flops(network: nn.Module, row: Tensor) -> int:
    """Return the operations of one forward pass of one row: two for each multiplication.

    Convolutions and products of matrices count, as in PyTorch's counter; nothing else does.

    Args:
        network: A network on the device ``meta``.
        row: Its input, on this device: see :func:`image_shape`.

    Raises:
        UsageError: The network cannot be run with its arguments.
    """
    counter = FlopCounterMode(display=False)
    with evaluating(network), counter:
        network(row)
    return int(counter.get_total_flops())


def image_shape(size: int) -> Tensor:
    """Return one square image (1, 3, size, size) without memory."""
    return torch.zeros(1, 3, size, size, device="meta")


def shown(network: nn.Module) -> str:
    """Return the name of a network and the number of its parameters."""
    cfg: Any = network.pretrained_cfg
    count = sum(parameter.numel() for parameter in network.parameters())
    return f"{cfg['architecture']}, {count / 1e6:.1f} M"
