from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import timm
import torch
from torch import nn

from logitcache.errors import NetworkError
from logitcache.networks.build import NetworkConfig, build_network, input_spec
from logitcache.networks.taps import TappedNetwork
from logitcache.training.export.export import export_network

if TYPE_CHECKING:
    from pathlib import Path

SMALL: dict[str, Any] = {
    "img_size": 16,
    "patch_size": 4,
    "embed_dim": 24,
    "depth": 2,
    "num_heads": 2,
    "stem_width": 32,
    "heads": ["cnn", "red"],
}


def build(**kwargs: Any) -> Any:
    torch.manual_seed(0)
    config = NetworkConfig(model="civt_tiny_patch16_224", kwargs={**SMALL, **kwargs})
    return build_network(config, 5).eval()


@pytest.mark.parametrize("stems", [["convolution", "involution"], []])
def test_the_answer_is_the_mean_of_a_head_for_each_token(stems: list[str]) -> None:
    network, images = build(stems=stems), torch.randn(3, 3, 16, 16)
    heads = ["heads.cls", "heads.cnn", "heads.red"]
    with torch.no_grad():
        logits, held = TappedNetwork(network, [*heads, "norm"], size=16)(images)
    assert held["norm"].shape == (3, 16 + 3, 24)
    for index, head in enumerate(heads):
        own = network.get_submodule(head)(held["norm"][:, index])
        torch.testing.assert_close(held[head], own)
    torch.testing.assert_close(logits, torch.stack([held[h] for h in heads]).mean(0))
    assert len({tuple(held[h][0].tolist()) for h in heads}) == 3


def test_tokens_are_means_of_stems_and_patches_their_sum() -> None:
    network, images = build(), torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        patches = network.patch_embed(images)
        embedded = network._pos_embed(patches) - network.pos_embed
    assert patches.shape == (2, 2, 16, 24)
    torch.testing.assert_close(embedded[:, 1:3], patches.mean(2))
    torch.testing.assert_close(embedded[:, 3:], patches.sum(1))
    assert network.pos_embed.shape == (1, 19, 24)


def test_the_published_stems() -> None:
    """At 224 pixels: 64 channels at stride 2, then patches of 8; 199 tokens."""
    torch.manual_seed(0)
    network: Any = timm.create_model("civt_tiny_patch16_224", depth=1)
    assert [tuple(p.weight.shape) for p in network.patch_embed.proj] == [(192, 64, 8, 8)] * 2
    kernels = [
        m.weight.shape for m in network.patch_embed.stems[0].modules() if hasattr(m, "weight")
    ]
    assert [k for k in kernels if len(k) == 4] == [(64, 3, 7, 7), (64, 64, 3, 3), (64, 64, 3, 3)]
    assert network.pos_embed.shape[1] == 199
    assert list(network.heads) == ["cls", "conv", "inv"]


def test_stems_are_initialized_as_published() -> None:
    """Normal weights of variance 2 / fan-in, in all convolutions of all stems."""
    torch.manual_seed(0)
    network: Any = timm.create_model("civt_tiny_patch16_224", depth=1)
    convolutions = [m for m in network.patch_embed.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 3 + 4 + 2
    for module in convolutions:
        weight = module.weight.detach()
        fan_in = weight[0].numel()
        assert float(weight.std()) == pytest.approx((2 / fan_in) ** 0.5, rel=0.1)
        assert float(weight.abs().max()) > 2 * (2 / fan_in) ** 0.5  # no uniform distribution


@pytest.mark.parametrize("stems", [["convolution", "involution"], []])
def test_an_export_is_opened_by_timm(tmp_path: Path, stems: list[str]) -> None:
    network = build(stems=stems)
    export_network(network, input_spec(network), tmp_path)
    again: Any = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(again(images), network(images), rtol=0, atol=0)
    other: Any = timm.create_model(f"local-dir:{tmp_path}", pretrained=False, num_classes=7)
    assert [head.out_features for head in other.get_classifier()] == [7, 7, 7]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"stems": ["convolution"]}, "2 heads and 1 stems"),
        ({"stems": ["convolution", "attention"]}, "unknown kind of stem 'attention'"),
        ({"patch_size": 5}, "even patch size"),
    ],
)
def test_what_cannot_be_built_is_explained(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(NetworkError, match=message):
        build(**kwargs)
