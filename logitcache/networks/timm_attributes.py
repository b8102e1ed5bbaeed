"""Attributes of timm's networks for networks of other origin.

The other packages read ``pretrained_cfg``, ``num_classes`` and ``get_classifier()`` of a network.
Such a network gets them here, after a forward pass of two black images, which finds the number of
outputs and whatever else prevents the network from being run.
"""

from __future__ import annotations

import hashlib
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from logitcache.errors import NetworkError, UsageError, first_of
from logitcache.networks.weights_file import short_text

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from logitcache.networks.config import NetworkConfig

__all__ = ["CODE", "adopt", "last_layer", "override_input"]

CODE = "code_sha256"
"""Name of the digest of a file with code, in a network's configuration and in a teacher's lock."""

_FEWEST = 2  # classes, and images of the first forward pass


def override_input(cfg: dict[str, Any], config: NetworkConfig) -> None:
    """Replace size, normalization and interpolation of a network by those that the user sets.

    Args:
        cfg: Configuration of the network, in the form of timm's ``pretrained_cfg``.
        config: Settings.
    """
    given = {"mean": config.mean, "std": config.std, "interpolation": config.interpolation}
    cfg.update({name: value for name, value in given.items() if value is not None})


def adopt(
    network: nn.Module,
    config: NetworkConfig,
    own: Mapping[str, Any],
    *,
    num_classes: int | None,
    code: Path | None = None,
) -> nn.Module:
    """Give a network the attributes that timm's networks have, and return it.

    Args:
        network: A network in float32 on the CPU, from images (B, 3, S, S) to logits (B, C).
        config: Its settings.
        own: What is known of it, in the form of timm's ``pretrained_cfg``.
        num_classes: 0 for a network without classes, which may return anything; None otherwise.
        code: File with its code, whose digest becomes part of its lock.

    Raises:
        UsageError: Its input size, mean or standard deviation is not known.
        NetworkError: It cannot be run, or does not return logits.
    """
    cfg: dict[str, Any] = {**own, "architecture": config.model}
    override_input(cfg, config)
    if config.size is not None:
        cfg["input_size"] = (3, config.size, config.size)
    if code is not None:
        with code.open("rb") as file:
            cfg[CODE] = hashlib.file_digest(file, "sha256").hexdigest()
    _check_input(cfg, config)
    outputs = _forwarded(network.eval(), cfg["input_size"], config)
    classes = 0 if num_classes == 0 else _classes_of(outputs, config)
    cfg["num_classes"] = classes
    names = cfg.get("label_names")
    if classes and names is not None and len(names) != classes:
        raise UsageError(
            "the network has another number of outputs than names of classes",
            where=config.model,
            expected=f"{classes} label_names",
            got=f"{len(names)}: {first_of([str(name) for name in names])}",
        )
    attributes: Any = network
    attributes.num_classes = classes
    attributes.pretrained_cfg = attributes.default_cfg = cfg
    if not callable(getattr(network, "get_classifier", None)):
        attributes.get_classifier = partial(last_layer, network, classes)
    return network


def last_layer(network: nn.Module, outputs: int) -> nn.Module | None:
    """Return the last linear layer with a number of outputs; None if there is no such layer."""
    found: nn.Module | None = None
    for module in network.modules():
        sizes = getattr(module, "out_features", None), getattr(module, "out_channels", None)
        if isinstance(module, nn.Linear | nn.Conv2d) and outputs in sizes:
            found = module
    return found


def _check_input(cfg: Mapping[str, Any], config: NetworkConfig) -> None:
    names = {"input_size": "size", "mean": "mean", "std": "std"}
    missing = [name for key, name in names.items() if cfg.get(key) is None]
    if missing:
        flags = " ".join(
            f"--set teachers.NAME.{name}={'224' if name == 'size' else '[R,G,B]'}"
            for name in missing
        )
        raise UsageError(
            "the input of the network is not known, and another one would give other outputs",
            where=config.model,
            got=f"no {', no '.join(missing)}",
            hint=f"set them as in its training: {flags}; or return them from a factory, as the "
            "network's pretrained_cfg",
        )


def _forwarded(network: nn.Module, size: tuple[int, int, int], config: NetworkConfig) -> object:
    """Return the outputs for two black images."""
    try:
        with torch.no_grad():
            return network(torch.zeros(_FEWEST, *size))
    except NetworkError:
        raise
    except Exception as error:  # code of the user may raise anything
        raise NetworkError(
            "the network cannot be run",
            where=config.model,
            expected=f"a forward pass of {_FEWEST} images of shape {tuple(size)} in float32 on the "
            "CPU",
            got=f"{type(error).__name__}: {short_text(error)}",
            hint="check the input size (size) and the code of the network",
        ) from error


def _classes_of(outputs: object, config: NetworkConfig) -> int:
    """Return the number of classes of logits.

    Raises:
        NetworkError: They are no logits.
    """
    if isinstance(outputs, Tensor) and outputs.ndim == 2 and len(outputs) == _FEWEST:
        classes = outputs.shape[1]
        if classes >= _FEWEST and outputs.is_floating_point():
            return classes
    raise NetworkError(
        "the network does not return logits",
        where=config.model,
        expected="one tensor (B, C) of floating-point numbers, with at least 2 classes C",
        got=_described(outputs),
        hint="return the logits alone, from a wrapper if need be; or, for a backbone, set "
        "head: none, and cache its output: --set teachers.NAME.head=none --feature NAME=output",
    )


def _described(outputs: object) -> str:
    if isinstance(outputs, Tensor):
        kind = str(outputs.dtype).removeprefix("torch.")
        return f"a tensor {tuple(outputs.shape)} of {kind} for {_FEWEST} images"
    names = getattr(outputs, "keys", None)
    keys = f" with {first_of([str(key) for key in names()])}" if callable(names) else ""
    return f"{type(outputs).__name__}{keys}"
