"""Digest of the weights of a network, independent of the file format."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import nn

__all__ = ["weights_digest"]


def weights_digest(network: nn.Module) -> str:
    """Return the sha256, in hex, over name, dtype, shape and bytes of every tensor, by name.

    Buffers such as running means count; the file format, the device and the order do not.
    """
    sha256 = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        header = f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0"
        sha256.update(header.encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        sha256.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    return sha256.hexdigest()
