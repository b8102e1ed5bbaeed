"""Devices by name."""

from __future__ import annotations

import torch

from logitcache.errors import UsageError

__all__ = ["resolve_device"]


def resolve_device(name: str) -> torch.device:
    """Return the device that a name means; ``auto`` takes an accelerator if there is one.

    Raises:
        UsageError: There is no such device here.
    """
    if name != "auto":
        return _usable(name)
    accelerator = (
        torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    )
    return accelerator or torch.device("cpu")


def _usable(name: str) -> torch.device:
    """Return a device on which a tensor can be made."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # unknown or absent; built without support
        raise UsageError(
            "this device cannot be used",
            where="device",
            got=f"{name}: {str(error).partition(chr(10))[0]}",
            hint="auto takes an accelerator if there is one, else the processor",
        ) from None
    return device
