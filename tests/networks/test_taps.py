from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import timm
import torch
from torch import nn

from logitcache.errors import UsageError
from logitcache.networks import rednet
from logitcache.networks.taps import PRE_LOGITS, TappedNetwork, suggested_taps, tap_shapes

if TYPE_CHECKING:
    from torch import Tensor

assert rednet  # registers its models

TINY_CNN: dict[str, Any] = {"channels": [16, 16, 16, 16], "stem_width": 16}
TINY_VIT: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3}
TINY_SWIN: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 2,
    "window_size": 4,
    "embed_dim": 16,
    "depths": (1, 1),
    "num_heads": (2, 2),
}


def _build(model: str, **kwargs: Any) -> nn.Module:
    torch.manual_seed(0)
    network: nn.Module = timm.create_model(model, num_classes=5, **kwargs)
    return network.eval()


def _images(size: int = 32) -> Tensor:
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))


CASES = [
    ("resnet10t", TINY_CNN, ["layer1", "layer4"], [1, 4]),
    ("rednet26_small", {"layers": (1, 1), "width": 32, "kernel_size": 3}, ["layer2"], [1]),
    ("vit_tiny_patch16_224", {**TINY_VIT, "num_heads": 2}, ["blocks.0", "blocks.2"], [0, 2]),
    ("swin_tiny_patch4_window7_224", TINY_SWIN, ["layers.0", "layers.1"], [0, 1]),
]


@pytest.mark.requirement("F8.3")
@pytest.mark.parametrize(("model", "kwargs", "taps", "indices"), CASES)
def test_taps_are_what_timm_calls_intermediates(
    model: str, kwargs: dict[str, Any], taps: list[str], indices: list[int]
) -> None:
    network, images = _build(model, **kwargs), _images()
    tapped = TappedNetwork(network, taps, size=32).eval()
    with torch.inference_mode():
        logits, found = tapped(images)
        expected = network.forward_intermediates(  # type: ignore[operator]  # timm is untyped here
            images, indices=indices, intermediates_only=True
        )
        plain = network(images)
    torch.testing.assert_close(logits, plain, rtol=0, atol=0)
    for tap, wanted in zip(taps, expected, strict=True):
        shape = tapped.shapes[tap]
        values = found[tap]
        assert tuple(values.shape[1:]) == shape.shape
        if shape.layout == "NLC":
            patches = values[:, shape.prefix_tokens :]
            values = patches.transpose(1, 2).unflatten(2, (shape.grid, shape.grid))
        torch.testing.assert_close(values, wanted, rtol=0, atol=0)


def test_pre_logits_are_what_the_classifier_is_fed() -> None:
    for model, kwargs, _, _ in CASES:
        network = _build(model, **kwargs)
        with torch.inference_mode():
            _, found = TappedNetwork(network, [PRE_LOGITS], size=32)(_images())
            features = network.forward_features(_images())  # type: ignore[operator]  # untyped
            expected = network.forward_head(features, pre_logits=True)  # type: ignore[operator]  # untyped
        torch.testing.assert_close(found[PRE_LOGITS], expected, rtol=0, atol=0)


def test_class_tokens_and_registers_are_prefix_tokens() -> None:
    network = _build("vit_tiny_patch16_224", **TINY_VIT, num_heads=2, reg_tokens=2)
    shape = tap_shapes(network, ["norm"], 32)["norm"]
    assert (shape.layout, shape.shape, shape.grid, shape.prefix_tokens) == ("NLC", (19, 24), 4, 3)


def test_what_follows_in_place_does_not_change_what_was_caught() -> None:
    network = _build("resnet10t", **TINY_CNN)
    with torch.inference_mode():
        _, found = TappedNetwork(network, ["layer1.0.bn1"], size=32)(_images())
    assert found["layer1.0.bn1"].min() < 0  # the activation behind it works in place


def test_gradients_flow_through_taps_and_a_copy_has_its_own() -> None:
    network = _build("resnet10t", **TINY_CNN).train()
    tapped = TappedNetwork(network, ["layer1"], size=32)
    assert network.training
    twin = copy.deepcopy(tapped)
    _, found = tapped(_images())
    found["layer1"].square().mean().backward()
    assert all(p.grad is not None for p in network.layer1.parameters())  # type: ignore[union-attr]  # untyped
    assert all(p.grad is None for p in twin.parameters())


@pytest.mark.parametrize("tap", ["layer9", "", "layer1.0.conv"])
def test_an_unknown_tap_names_the_usual_ones(tap: str) -> None:
    with pytest.raises(UsageError, match="layer4, pre_logits"):
        TappedNetwork(_build("resnet10t", **TINY_CNN), [tap], size=32)


def test_a_tap_without_a_tensor_is_an_error() -> None:
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    network = _build("resnet10t", **TINY_CNN)
    network.add_module("unused", Pair())
    with pytest.raises(UsageError, match="does not return a tensor"):
        TappedNetwork(network, ["unused"], size=32)


def test_every_suggestion_can_be_tapped() -> None:
    for model, kwargs, _, _ in CASES:
        network = _build(model, **kwargs)
        names = suggested_taps(network)
        assert names[-1] == PRE_LOGITS
        assert set(tap_shapes(network, names, 32)) == set(names)


SHAPES = [
    {"num_heads": 2},
    {"num_heads": 3, "qk_norm": True, "reg_tokens": 4},
    {"num_heads": 2, "class_token": False, "global_pool": "avg"},
]


@pytest.mark.requirement("F8.15")
@pytest.mark.parametrize("kwargs", SHAPES)
@pytest.mark.parametrize("fused", [True, False])
def test_relations_are_those_of_the_queries_keys_and_values_of_an_attention(
    kwargs: dict[str, Any], fused: bool
) -> None:
    """Of patches alone, whether attention is fused or not; by loops over heads."""
    network: Any = _build("vit_tiny_patch16_224", **{**TINY_VIT, **kwargs})
    attention = network.blocks[1].attn
    attention.fused_attn = fused
    taken: list[Tensor] = []
    attention.register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0]))
    taps = ["blocks.1.attn.scores", "blocks.1.attn.value_products", "blocks.1.attn.qkv"]
    tapped = TappedNetwork(network, taps, size=32)
    with torch.no_grad():
        logits, found = tapped(_images())
        assert torch.equal(logits, network(_images()))
        q, k, v = attention.qkv(taken[-1]).chunk(3, dim=2)
    torch.testing.assert_close(found[taps[2]], torch.cat([q, k, v], 2))
    heads, first = attention.num_heads, network.num_prefix_tokens
    width = q.shape[2] // heads
    scores, values = (torch.zeros(3, 16, 16) for _ in range(2))
    for h in range(heads):
        own = slice(h * width, (h + 1) * width)
        queries, keys = attention.q_norm(q[:, first:, own]), attention.k_norm(k[:, first:, own])
        scores += queries @ keys.transpose(1, 2) / width**0.5 / heads
        values += v[:, first:, own] @ v[:, first:, own].transpose(1, 2) / width**0.5 / heads
    torch.testing.assert_close(found[taps[0]], scores, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[taps[1]], values, rtol=1e-4, atol=1e-5)
    for tap in taps[:2]:
        shape = tapped.shapes[tap]
        assert (shape.layout, shape.shape, shape.grid, shape.prefix_tokens) == (
            *("NLC", (16, 16), 4),
            0,
        )


def test_a_relation_of_what_is_no_attention_is_explained() -> None:
    with pytest.raises(UsageError, match="no attention module of timm") as error:
        TappedNetwork(_build("resnet10t", **TINY_CNN), ["layer1.scores"], size=32)
    assert "<attention>.value_products" in str(error.value)
