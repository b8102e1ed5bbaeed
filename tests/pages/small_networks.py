"""Architectures of the pages' commands, and the small ones that are built in their place."""

from __future__ import annotations

from typing import Any

__all__ = ["NETWORKS"]

_RESNET = {"block_args": {}, "channels": [16, 16, 32, 32], "stem_width": 16}
_VIT = {"embed_dim": 24, "num_heads": 2}
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet18": ("resnet10t", _RESNET),
    "resnet50": ("resnet10t", _RESNET),
    "rednet50": ("rednet26_small", {"layers": [1, 1, 1], "width": 32}),
    "tf_efficientnet_lite0": ("resnet10t", _RESNET),
    "vit_small_patch14_dinov2": ("vit_small_patch14_dinov2", _VIT),
    "vit_tiny_patch16_224": ("vit_tiny_patch16_224", _VIT),
    "vit_small_patch16_224": ("vit_tiny_patch16_224", _VIT),
}
"""Architectures that are built as another, small one, and its arguments."""
