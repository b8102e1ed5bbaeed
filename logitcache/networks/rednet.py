"""RedNet: a ResNet whose spatial convolutions are involutions, registered with timm.

Source: Li et al., "Involution: Inverting the Inherence of Convolution for Visual Recognition",
CVPR 2021. timm has no involution, and the published weights come in mmcls checkpoints; module
names here follow that layout (``stem.1.conv2.conv``, ``layer1.0.conv2.conv1.bn`` …), so a
published checkpoint loads after its prefixes are dropped.

Shapes: B batch, C channels, H W height and width.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers.classifier import ClassifierHead
from timm.models import (
    build_model_with_cfg,
    generate_default_cfgs,
    register_model,
)
from torch import Tensor, nn

from logitcache.networks.involution import GROUP_CHANNELS, ConvNormAct, Involution

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["RedNet", "checkpoint_filter_fn", "kwargs_from_weights", "rednet_stem"]

_EXPANSION = 4


class Bottleneck(nn.Module):
    """1x1 convolution, 7x7 involution, 1x1 convolution, and the shortcut."""

    def __init__(self, in_chans: int, width: int, stride: int, kernel_size: int) -> None:
        super().__init__()
        out_chans = _EXPANSION * width
        self.conv1 = nn.Conv2d(in_chans, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = Involution(width, kernel_size, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_chans, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_chans)
        self.act = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_chans != out_chans:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_chans, out_chans, 1, stride, bias=False), nn.BatchNorm2d(out_chans)
            )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Map (B, in_chans, stride * H, stride * W) to (B, 4 * width, H, W)."""
        shortcut = x_BCHW if self.downsample is None else self.downsample(x_BCHW)
        x = self.act(self.bn1(self.conv1(x_BCHW)))
        x = self.act(self.bn2(self.conv2(x)))
        out: Tensor = self.act(self.bn3(self.conv3(x)) + shortcut)
        return out


class RedNet(nn.Module):
    """Involution network with the structure and interface of a timm ResNet.

    Args:
        layers: Blocks in each of the stages.
        num_classes: Size of the head; 0 for none.
        in_chans: Input channels.
        global_pool: Pooling of the head, as in timm.
        width: Bottleneck width of the first stage, a multiple of 16; doubles every stage.
        kernel_size: Side of the involutions of the stages.
        stem_kernel: Side of the involution of the stem: 3 (classification) or 7 (the backbones
            published for detection and segmentation).
        stem_stride: 2 as published; 1 for small images.
        stem_pool: Whether a 3x3 max pooling of stride 2 follows the stem, as published.
        drop_rate: Dropout before the head.
    """

    def __init__(
        self,
        layers: Sequence[int],
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        width: int = 64,
        kernel_size: int = 7,
        stem_kernel: int = 3,
        stem_stride: int = 2,
        stem_pool: bool = True,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.stem = rednet_stem(in_chans, width, stem_kernel, stem_stride)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if stem_pool else nn.Identity()
        reduction = stem_stride * (2 if stem_pool else 1)
        in_width = width
        self.feature_info = []
        for index, blocks in enumerate(layers):
            stride = 1 if index == 0 else 2
            reduction *= stride
            stage = _stage(in_width, width << index, blocks, stride, kernel_size)
            self.add_module(f"layer{index + 1}", stage)
            in_width = _EXPANSION * (width << index)
            self.feature_info.append(
                {"num_chs": in_width, "reduction": reduction, "module": f"layer{index + 1}"}
            )
        self.stage_names = [str(info["module"]) for info in self.feature_info]
        self.num_features = self.head_hidden_size = in_width
        head = ClassifierHead(in_width, num_classes, pool_type=global_pool, drop_rate=drop_rate)
        self.global_pool, self.drop, self.fc = head.global_pool, head.drop, head.fc
        _initialize(self)

    def get_classifier(self) -> nn.Module:
        """Return the last linear layer."""
        classifier: nn.Module = self.fc
        return classifier

    def reset_classifier(self, num_classes: int, global_pool: str = "avg") -> None:
        """Replace the head by a new one for ``num_classes`` classes."""
        self.num_classes = num_classes
        head = ClassifierHead(self.num_features, num_classes, pool_type=global_pool)
        self.global_pool, self.fc = head.global_pool, head.fc

    def forward_features(self, x_BCHW: Tensor) -> Tensor:
        """Map images to the last map (B, num_features, H/32, W/32)."""
        x = self.maxpool(self.stem(x_BCHW))
        for name in self.stage_names:
            x = self.get_submodule(name)(x)
        out: Tensor = x
        return out

    def forward_head(self, x_BCHW: Tensor, pre_logits: bool = False) -> Tensor:
        """Map the last map to logits (B, num_classes), or to pooled features."""
        x = self.drop(self.global_pool(x_BCHW))
        out: Tensor = x if pre_logits else self.fc(x)
        return out

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Map images (B, in_chans, H, W) to logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x_BCHW))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: Literal["NCHW"] = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return the maps of the chosen stages, with the last map by default.

        Args:
            x: Images (B, in_chans, H, W).
            indices: Stages, counted from 0; the last n for an int, all for None.
            norm: Ignored, part of timm's interface; stages have no norm of their own.
            stop_early: Whether to stop after the last chosen stage.
            output_fmt: Only NCHW.
            intermediates_only: Whether to return only these maps.
        """
        del norm
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt has to be NCHW, not {output_fmt}")
        take = _chosen(indices, len(self.stage_names))
        x = self.maxpool(self.stem(x))
        intermediates = []
        for index, name in enumerate(self.stage_names):
            if stop_early and index > max(take):
                break
            x = self.get_submodule(name)(x)
            if index in take:
                intermediates.append(x)
        return intermediates if intermediates_only else (x, intermediates)


def _chosen(indices: int | list[int] | None, stages: int) -> list[int]:
    """Return the stages of timm's ``indices`` argument."""
    if indices is None:
        return list(range(stages))
    if isinstance(indices, int):
        return list(range(stages - indices, stages))
    return [range(stages)[index] for index in indices]


def rednet_stem(in_chans: int, width: int, kernel_size: int, stride: int) -> nn.Sequential:
    """Return a RedNet's stem; its positions 0..4 are the ones of the published checkpoints.

    Args:
        in_chans: Input channels.
        width: Output channels, a multiple of 32.
        kernel_size: Side of its involution.
        stride: Stride of its first convolution.
    """
    half = width // 2
    return nn.Sequential(
        ConvNormAct(in_chans, half, 3, stride),
        Involution(half, kernel_size),
        nn.BatchNorm2d(half),
        nn.ReLU(inplace=True),
        ConvNormAct(half, width, 3),
    )


def _stage(in_chans: int, width: int, blocks: int, stride: int, kernel_size: int) -> nn.Sequential:
    first = Bottleneck(in_chans, width, stride, kernel_size)
    rest = [Bottleneck(_EXPANSION * width, width, 1, kernel_size) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)


def _initialize(network: nn.Module) -> None:
    """Kaiming for convolutions; the last norm of a block starts at zero, as published."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, Bottleneck):
            nn.init.zeros_(module.bn3.weight)


def kwargs_from_weights(state_dict: dict[str, Tensor]) -> dict[str, Any]:
    """Return the arguments of a RedNet that follow from its weights: ``stem_kernel``.

    Args:
        state_dict: Tensors by the names of this module; others are ignored.
    """
    kernels = state_dict.get("stem.1.conv2.conv.weight")
    if kernels is None or kernels.ndim != 4:
        return {}
    groups = kernels.shape[1] * 4 // GROUP_CHANNELS
    return {"stem_kernel": math.isqrt(kernels.shape[0] // groups)} if groups else {}


def checkpoint_filter_fn(
    state_dict: dict[str, Any], model: nn.Module | None = None
) -> dict[str, Tensor]:
    """Rename the keys of a published checkpoint (mmcls or Co-advise) to the ones used here."""
    del model
    renamed = {}
    for key, value in state_dict.items():
        key = key.removeprefix("backbone.").removeprefix("model.")
        for old in ("head.fc.", "classifier."):
            key = f"fc.{key.removeprefix(old)}" if key.startswith(old) else key
        renamed[key] = value
    return renamed


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bilinear",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stem.0.conv",
        "classifier": "fc",
        "paper_ids": "arXiv:2103.06255",
        **kwargs,
    }


_SMALL = {"input_size": (3, 32, 32), "pool_size": (4, 4), "crop_pct": 1.0}

default_cfgs = generate_default_cfgs(
    {
        "rednet26.untrained": _cfg(),
        "rednet38.untrained": _cfg(),
        "rednet50.untrained": _cfg(),
        "rednet101.untrained": _cfg(),
        "rednet152.untrained": _cfg(),
        "rednet26_small.untrained": _cfg(**_SMALL),
    }
)


def _create_rednet(variant: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    network: nn.Module = build_model_with_cfg(
        RedNet,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": tuple(range(len(kwargs["layers"])))},
        **kwargs,
    )
    return network


@register_model
def rednet26(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """RedNet-26: 9 233 166 parameters."""
    return _create_rednet("rednet26", pretrained, **{"layers": (1, 2, 4, 1), **kwargs})


@register_model
def rednet38(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """RedNet-38: 12 386 986 parameters."""
    return _create_rednet("rednet38", pretrained, **{"layers": (2, 3, 5, 2), **kwargs})


@register_model
def rednet50(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """RedNet-50: 15 540 806 parameters."""
    return _create_rednet("rednet50", pretrained, **{"layers": (3, 4, 6, 3), **kwargs})


@register_model
def rednet101(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """RedNet-101: 25 652 950 parameters."""
    return _create_rednet("rednet101", pretrained, **{"layers": (3, 4, 23, 3), **kwargs})


@register_model
def rednet152(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """RedNet-152: 33 984 582 parameters."""
    return _create_rednet("rednet152", pretrained, **{"layers": (3, 8, 36, 3), **kwargs})


@register_model
def rednet26_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """RedNet-26 for images of 32 pixels: no stride and no pooling in the stem, total stride 8."""
    small = {"layers": (1, 2, 4, 1), "stem_stride": 1, "stem_pool": False}
    return _create_rednet("rednet26_small", pretrained, **{**small, **kwargs})
