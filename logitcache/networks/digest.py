"""Digest of the weights of a network, independent of the file format."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import nn

__all__ = ["weights_digest"]


def weights_digest(network: nn.Module) -> str:
    """Return the SHA-256, hexadecimal, over name, dtype, shape and bytes of all tensors by name.

    Buffers such as running means are included; it does not depend on file format, device or order.
    """
    sha256 = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        header = f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0"
        sha256.update(header.encode())
        # numpy has no bfloat16, but bytes of any type
        flat = tensor.detach().cpu().contiguous().flatten()
        sha256.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    return sha256.hexdigest()
