"""A vision transformer with a token, a head and optionally a stem per teacher.

Source: Ren et al., "Co-advise: Cross Inductive Bias Distillation", CVPR 2022 (CivT, as its code has
it), which Habib et al., "Distilling Inductive Bias: Knowledge Distillation Beyond Model
Compression", 2023 (LIB-KD), builds on. A stem is a 7x7 and two 3x3 convolutions, or that of a
RedNet; each has stride 2 and is followed by patches of half the size. Tokens are the class token
and the mean of each stem's patches, patches the sum over stems. Without stems tokens are learned,
as in DeiT.

Every token has a linear head, ``heads.cls`` and ``heads.<name>``, which objectives use by these
names; the output is the mean of all heads.

Shapes: B batch, S stems, N patches, D channels, C classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from logitcache.networks.involution import ConvNormAct
from logitcache.networks.rednet import rednet_stem

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["CivT"]

_CLASS = "cls"
_HEADS = ("conv", "inv")


class Stems(nn.Module):
    """Several stems side by side, each ending in patches.

    Args:
        kinds: ``convolution`` or ``involution`` each.
        img_size: Side of the images in pixels.
        patch_size: Side of a patch in pixels, even.
        in_chans: Channels of the images.
        embed_dim: D.
        width: Channels of the stems, a multiple of 32.
    """

    def __init__(
        self,
        kinds: Sequence[str],
        *,
        img_size: int,
        patch_size: int,
        in_chans: int,
        embed_dim: int,
        width: int,
    ) -> None:
        super().__init__()
        if patch_size % 2 or img_size % patch_size:
            raise ValueError(
                f"stems need an even patch size that divides the image size {img_size}, "
                f"not {patch_size}"
            )
        half = patch_size // 2
        self.stems = nn.ModuleList(_stem(kind, in_chans, width) for kind in kinds)
        self.proj = nn.ModuleList(nn.Conv2d(width, embed_dim, half, half) for _ in kinds)
        self.init_weights()

    def init_weights(self) -> None:
        """Initialize convolutions from normal distributions of variance 2 / fan-in, as published.

        Biases keep PyTorch's initialization.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Map images to patches (B, S, N, D)."""
        patches = [
            proj(stem(x_BCHW)).flatten(2).transpose(1, 2)
            for stem, proj in zip(self.stems, self.proj, strict=True)
        ]
        return torch.stack(patches, 1)


class CivT(VisionTransformer):
    """A vision transformer with a head per teacher.

    Args:
        heads: Name of each further token and its head.
        stems: ``convolution`` or ``involution`` for each of them; none for learned tokens and
            ordinary patches.
        stem_width: Channels of the stems, a multiple of 32.
        img_size: Side of the images in pixels.
        patch_size: Side of a patch in pixels.
        in_chans: Channels of the images.
        num_classes: C.
        embed_dim: D.
        kwargs: Further arguments of timm's vision transformer.
    """

    def __init__(
        self,
        heads: Sequence[str] = _HEADS,
        stems: Sequence[str] = ("convolution", "involution"),
        stem_width: int = 64,
        img_size: int = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 192,
        **kwargs: Any,
    ) -> None:
        if stems and len(stems) != len(heads):
            raise ValueError(
                f"{len(heads)} heads and {len(stems)} stems: expected a stem for each head, or none"
            )
        super().__init__(
            img_size=img_size,
            patch_size=patch_size,
            in_chans=in_chans,
            num_classes=0,
            embed_dim=embed_dim,
            reg_tokens=len(heads),
            **kwargs,
        )
        if stems:
            self.reg_token = None
            self.patch_embed = Stems(
                stems,
                img_size=self.patch_embed.img_size[0],
                patch_size=self.patch_embed.patch_size[0],
                in_chans=in_chans,
                embed_dim=embed_dim,
                width=stem_width,
            )
        self.head_names = [_CLASS, *heads]
        self.heads = nn.ModuleDict()
        self.reset_classifier(num_classes)

    def get_classifier(self) -> tuple[nn.Module, ...]:
        """Return the heads."""
        return tuple(self.heads.values())

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the heads by new ones for ``num_classes`` classes."""
        del global_pool
        self.num_classes = num_classes
        self.heads = nn.ModuleDict({name: self._fresh(num_classes) for name in self.head_names})

    def _fresh(self, num_classes: int) -> nn.Module:
        if num_classes == 0:
            return nn.Identity()
        head = nn.Linear(self.embed_dim, num_classes)
        nn.init.trunc_normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)
        return head

    def _pos_embed(self, x: Tensor) -> Tensor:
        """Put tokens before patches, and add positions."""
        if x.ndim == 3:
            embedded: Tensor = super()._pos_embed(x)
            return embedded
        assert self.cls_token is not None
        assert self.pos_embed is not None
        tokens = [self.cls_token.expand(len(x), -1, -1), x.mean(2), x.sum(1)]
        placed: Tensor = self.pos_drop(torch.cat(tokens, 1) + self.pos_embed)
        return placed

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Map tokens to the mean of the heads' logits (B, C), or to the mean of their tokens."""
        tokens = self.head_drop(self.fc_norm(x[:, : len(self.heads)]))
        if pre_logits:
            mean: Tensor = tokens.mean(1)
            return mean
        logits = [head(tokens[:, index]) for index, head in enumerate(self.heads.values())]
        return torch.stack(logits).mean(0)


def _stem(kind: str, in_chans: int, width: int) -> nn.Module:
    stems: dict[str, Callable[[], nn.Module]] = {
        "convolution": lambda: nn.Sequential(
            ConvNormAct(in_chans, width, 7, 2),
            ConvNormAct(width, width, 3),
            ConvNormAct(width, width, 3),
        ),
        "involution": lambda: rednet_stem(in_chans, width, kernel_size=3, stride=2),
    }
    if kind not in stems:
        raise ValueError(f"unknown kind of stem {kind!r}: expected {' or '.join(stems)}")
    return stems[kind]()


def _cfg() -> dict[str, Any]:
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": None,
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "fixed_input_size": True,
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": (),
        "classifier": "heads.cls",
        "paper_ids": "arXiv:2106.12378",
    }


default_cfgs = generate_default_cfgs(
    {
        "civt_tiny_patch16_224.untrained": _cfg(),
        "civt_small_patch16_224.untrained": _cfg(),
    }
)


def _create_civt(
    variant: str,
    pretrained: bool,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    **kwargs: Any,
) -> nn.Module:
    # timm replaces the classifiers that are named here when the number of classes changes.
    heads = [f"heads.{name}" for name in (_CLASS, *kwargs.get("heads", _HEADS))]
    network: nn.Module = build_model_with_cfg(
        CivT,
        variant,
        pretrained,
        pretrained_cfg_overlay={"classifier": tuple(heads), **(pretrained_cfg_overlay or {})},
        **kwargs,
    )
    return network


@register_model
def civt_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """CivT of the size of DeiT-Ti."""
    tiny = {"embed_dim": 192, "depth": 12, "num_heads": 3}
    return _create_civt("civt_tiny_patch16_224", pretrained, **{**tiny, **kwargs})


@register_model
def civt_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """CivT of the size of DeiT-S."""
    small = {"embed_dim": 384, "depth": 12, "num_heads": 6}
    return _create_civt("civt_small_patch16_224", pretrained, **{**small, **kwargs})
