"""Names of tensors in published files that timm does not translate itself.

A translation is one entry of :data:`TRANSLATIONS`; it returns the tensors unchanged where a file or
a network is another one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from logitcache.networks.weights import Filter

__all__ = ["TRANSLATIONS", "from_efficientnet_pytorch"]

_TF = "tf_efficientnet"
_OUTER = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_EXPANDED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_se_reduce": "se.conv_reduce",
    "_se_expand": "se.conv_expand",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_NOT_EXPANDED = {**_EXPANDED, "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


def from_efficientnet_pytorch(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Translate the names of the packages efficientnet-pytorch and efficientnet-lite-pytorch.

    Only timm's ``tf_efficientnet`` networks pad images as these packages do; without this prefix
    the tensors of a network have the same shapes, but other outputs.

    Args:
        state_dict: Tensors of a file.
        model: The network of timm.
    """
    cfg: Any = getattr(model, "pretrained_cfg", {})
    if "_conv_stem.weight" not in state_dict or not str(cfg.get("architecture")).startswith(_TF):
        return state_dict
    stages: Any = model.blocks
    prefixes = [
        f"blocks.{stage}.{index}."
        for stage, blocks in enumerate(stages)
        for index in range(len(blocks))
    ]
    renamed = {}
    for name, tensor in state_dict.items():
        layer, _, field = name.rpartition(".")
        if layer.startswith("_blocks."):
            number, inner = layer.removeprefix("_blocks.").split(".")
            expanded = f"_blocks.{number}._expand_conv.weight" in state_dict
            names = _EXPANDED if expanded else _NOT_EXPANDED
            renamed[f"{prefixes[int(number)]}{names[inner]}.{field}"] = tensor
        else:
            renamed[f"{_OUTER[layer]}.{field}"] = tensor
    return renamed


TRANSLATIONS: tuple[Filter, ...] = (from_efficientnet_pytorch,)
"""Translations that are tried for every network, after those of timm for its module."""
