"""Devices by name."""

from __future__ import annotations

import logging

import torch

from logitcache.errors import UsageError

__all__ = ["resolve_device"]

_LOG = logging.getLogger(__name__)


def resolve_device(name: str) -> torch.device:
    """Return the device of a name; ``auto`` is an accelerator if there is one, else the CPU.

    Raises:
        UsageError: This machine has no such device.
    """
    if name != "auto":
        device = _usable(name)
        _LOG.info("device %s, as configured", device)
        return device
    accelerator = (
        torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    )
    if accelerator is None:
        _LOG.info("device cpu: PyTorch finds no accelerator")
        return torch.device("cpu")
    _LOG.info("device %s: the accelerator that PyTorch finds", accelerator)
    return accelerator


def _usable(name: str) -> torch.device:
    """Return a device on which a tensor can be created."""
    try:
        device = torch.device(name)
        # torch.device accepts the names of devices that do not exist
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # unknown or absent; built without support
        raise UsageError(
            "the device cannot be used",
            where="device",
            got=f"{name}: {str(error).partition(chr(10))[0]}",
            hint="auto selects an accelerator if there is one, else the CPU",
        ) from None
    return device
