"""Forward passes on some of the patches, and passes that end at the last tapped layer."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn

from logitcache.errors import UsageError
from logitcache.networks.build import NetworkConfig, build_network
from logitcache.networks.patch_drop import check_patch_drop, run_on_patches
from logitcache.networks.taps import TappedNetwork

KWARGS = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 2}
VISIBLE = torch.tensor([[0, 5, 15], [1, 2, 3]])


@pytest.fixture
def vit() -> Any:
    torch.manual_seed(0)
    model = {"model": "vit_tiny_patch16_224", "kwargs": KWARGS}
    return build_network(NetworkConfig.parse(model, ""), 3).eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.requirement("V4.25.2")
def test_blocks_are_run_on_the_class_token_and_the_visible_patches(
    vit: Any, images: torch.Tensor
) -> None:
    with torch.no_grad():
        with run_on_patches(vit, VISIBLE, 4):
            got = vit(images)
        # by hand, one row at a time
        for row in range(2):
            embedded = vit.patch_embed.proj(images[row : row + 1]).flatten(2).transpose(1, 2)
            positioned = embedded + vit.pos_embed[:, 1:]
            first = vit.cls_token + vit.pos_embed[:, :1]
            tokens = torch.cat([first, positioned[:, VISIBLE[row]]], 1)
            for block in vit.blocks:
                tokens = block(tokens)
            expected = vit.head(vit.norm(tokens)[:, 0])
            torch.testing.assert_close(got[row : row + 1], expected, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(vit(images), got, atol=1e-3), "the hook is gone afterwards"


def test_patches_that_are_not_shown_have_no_influence(vit: Any, images: torch.Tensor) -> None:
    other = images.clone()
    other[0, :, 4:8, 8:12] += 1.0  # patch 6 of row 0
    with torch.no_grad(), run_on_patches(vit, VISIBLE, 4):
        assert torch.equal(vit(images), vit(other))


def test_all_patches_give_what_the_network_gives(vit: Any, images: torch.Tensor) -> None:
    everything = torch.arange(16).expand(2, 16)
    with torch.no_grad(), run_on_patches(vit, everything, 4):
        got = vit(images)
    with torch.no_grad():
        torch.testing.assert_close(got, vit(images))


def test_a_convolution_network_is_refused() -> None:
    with pytest.raises(UsageError, match="cannot be run on some of the patches") as caught:
        check_patch_drop(nn.Conv2d(3, 4, 3), 4, 16, "teacher 'cnn'")
    assert caught.value.where == "teacher 'cnn'"


def test_another_grid_is_refused(vit: Any) -> None:
    check_patch_drop(vit, 4, 16, "student")
    with pytest.raises(UsageError, match="another grid"):
        check_patch_drop(vit, 8, 16, "student")


def counted(network: Any) -> Counter[str]:
    """Return a counter of the calls of all modules of a network."""
    calls: Counter[str] = Counter()
    for name, module in network.named_modules():
        module.register_forward_pre_hook(lambda _m, _i, name=name: calls.update([name]))
    return calls


def test_a_forward_pass_ends_at_the_last_tap(vit: Any, images: torch.Tensor) -> None:
    whole = TappedNetwork(vit, ["blocks.1", "blocks.0"], size=16)
    some = TappedNetwork(vit, ["blocks.1", "blocks.0"], size=16, stop=True)
    calls = counted(vit)
    with torch.no_grad():
        logits, expected = whole(images)
        assert (calls["blocks.2"], calls["head"]) == (1, 1)
        calls.clear()
        nothing, got = some(images)
    assert (calls["blocks.0"], calls["blocks.1"], calls["blocks.2"], calls["head"]) == (1, 1, 0, 0)
    assert (logits.shape, nothing.shape) == ((2, 3), (2, 0))
    assert all(torch.equal(got[tap], expected[tap]) for tap in expected)


def test_a_module_that_is_called_twice_is_captured_after_its_last_call() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 3, 1)

        def forward(self, x: torch.Tensor) -> Any:
            return self.layer(self.layer(x)).mean((2, 3))

    network = Twice()
    images = torch.randn(2, 3, 8, 8)
    _, expected = TappedNetwork(network, ["layer"], size=8)(images)
    _, got = TappedNetwork(network, ["layer"], size=8, stop=True)(images)
    assert torch.equal(got["layer"], expected["layer"])
