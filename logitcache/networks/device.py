"""Devices by name."""

from __future__ import annotations

import torch

from logitcache.errors import UsageError

__all__ = ["resolve_device"]


def resolve_device(name: str) -> torch.device:
    """Return the device of a name; ``auto`` is an accelerator if there is one, else the CPU.

    Raises:
        UsageError: This machine has no such device.
    """
    if name != "auto":
        return _usable(name)
    accelerator = (
        torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    )
    return accelerator or torch.device("cpu")


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
