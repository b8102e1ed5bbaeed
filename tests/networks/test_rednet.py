from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from logitcache.networks.build import NetworkConfig, build_network
from logitcache.networks.involution import Involution, involve
from tests.memory import peak_bytes
from tests.networks.naive_rednet import published_checkpoint, rednet, unfold_involution

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

LAYERS = {26: (1, 2, 4, 1), 38: (2, 3, 5, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("depth", "count"),
    [(26, 9_233_166), (38, 12_386_986), (50, 15_540_806), (101, 25_652_950), (152, 33_984_582)],
)
def test_parameter_counts_are_the_published_ones(depth: int, count: int) -> None:
    with torch.device("meta"):
        assert parameters(build_network(NetworkConfig(model=f"rednet{depth}"))) == count


def test_the_wide_stem_has_720_more() -> None:
    with torch.device("meta"):
        network = build_network(NetworkConfig(model="rednet26", kwargs={"stem_kernel": 7}))
        assert parameters(network) == 9_233_166 + 720


@pytest.mark.parametrize("stem_side", [3, 7])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_published_checkpoint_loads_and_gives_the_right_forward(
    tmp_path: Path, stem_side: int, suffix: str
) -> None:
    state = published_checkpoint(LAYERS[26], stem_side)
    path = tmp_path / f"rednet26.{suffix}"
    counted = {
        name.replace("running_var", "num_batches_tracked"): torch.tensor(1)
        for name in state
        if name.endswith("running_var")
    }
    if suffix == "pth":
        torch.save({"state_dict": {**state, **counted}, "meta": {"epoch": 130}}, path)
    else:
        save_file({**state, **counted}, path)
    network = build_network(NetworkConfig(model="rednet26", weights=str(path))).eval()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)).double()
    exact = {name: value.double() for name, value in state.items()}
    with torch.no_grad():
        expected = rednet(images, exact, LAYERS[26], stem_side)
        assert expected.std() > 1e-3
        torch.testing.assert_close(network.double()(images), expected)


def test_a_coadvise_checkpoint_loads(tmp_path: Path) -> None:
    state = published_checkpoint(LAYERS[26], 3)
    renamed = {
        name.replace("backbone.", "model.").replace("head.fc", "model.classifier"): value
        for name, value in state.items()
    }
    counted = {
        name.replace("running_var", "num_batches_tracked"): torch.tensor(1)
        for name in renamed
        if name.endswith("running_var")
    }
    torch.save({"model": {**renamed, **counted}}, tmp_path / "w.pth")
    network = build_network(NetworkConfig(model="rednet26", weights=str(tmp_path / "w.pth")))
    assert torch.equal(network.state_dict()["fc.weight"], state["head.fc.weight"])


CASES = [
    pytest.param((2, 32, 12, 10), 49, 1, id="taps"),
    pytest.param((2, 32, 12, 14), 49, 2, id="taps-stride"),
    pytest.param((1, 16, 9, 9), 9, 1, id="taps-small-kernel"),
    pytest.param((2, 32, 8, 8), 49, 1, id="matrix"),
    pytest.param((2, 48, 8, 6), 25, 2, id="matrix-stride"),
    pytest.param((2, 16, 1, 1), 49, 1, id="one-pixel"),
]


@pytest.mark.parametrize(("shape", "taps", "stride"), CASES)
def test_involution_equals_the_unfolded_one_with_its_gradient(
    shape: tuple[int, int, int, int], taps: int, stride: int
) -> None:
    batch, channels, height, width = shape
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64, generator=generator, requires_grad=True)
    kernel = torch.randn(
        (batch, channels // 16, taps, height // stride, width // stride),
        dtype=torch.float64,
        generator=generator,
        requires_grad=True,
    )
    ours, naive = involve(x, kernel, stride), unfold_involution(x, kernel, stride)
    torch.testing.assert_close(ours, naive)
    weights = torch.randn(ours.shape, dtype=torch.float64, generator=generator)
    expected = torch.autograd.grad((naive * weights).sum(), (x, kernel))
    got = torch.autograd.grad((ours * weights).sum(), (x, kernel))
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("side", [32, 8])
def test_involution_does_without_49_copies(side: int) -> None:
    x = torch.randn(2, 64, side, side, requires_grad=True)
    kernel = torch.randn(2, 4, 49, side, side, requires_grad=True)
    activation, kernels = x.numel() * 4, kernel.numel() * 4
    naive = peak_bytes(lambda: unfold_involution(x, kernel, 1).sum(), x, kernel)
    ours = peak_bytes(lambda: involve(x, kernel, 1).sum(), x, kernel)
    assert naive > 49 * activation
    assert ours < 6 * activation + 4 * kernels < naive / 2


def test_an_odd_map_is_refused_before_it_gives_a_wrong_one() -> None:
    with pytest.raises(ValueError, match="multiples"):
        Involution(16, 7, stride=2)(torch.zeros(1, 16, 7, 8))


def test_a_network_can_be_trained_after_it_was_used_for_inference() -> None:
    layer = Involution(16, 5)
    x = torch.randn(1, 16, 6, 6)
    with torch.inference_mode():
        layer(x)
    torch.autograd.backward(layer(x).sum())
    assert layer.conv2.conv.weight.grad is not None


def test_the_kernel_is_computed_in_float32_under_autocast() -> None:
    layer = Involution(16, 3)
    x = torch.randn(1, 16, 12, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = layer(x)
    assert half.dtype == torch.float32


def test_it_is_a_timm_model() -> None:
    network: Any = timm.create_model("rednet26_small", num_classes=7, layers=(1, 1), width=32)
    images = torch.randn(2, 3, 16, 16)
    final, maps = network.forward_intermediates(images)
    torch.testing.assert_close(network.forward_head(final), network(images))
    assert [tuple(m.shape) for m in maps] == [(2, 128, 16, 16), (2, 256, 8, 8)]
    assert len(network.forward_intermediates(images, indices=1, intermediates_only=True)) == 1
    network.reset_classifier(3)
    assert network(images).shape == (2, 3)
    network.reset_classifier(0)
    assert network(images).shape == (2, network.num_features)
    features: Any = timm.create_model("rednet26_small", features_only=True, layers=(1, 1), width=32)
    assert features.feature_info.channels() == [128, 256]


def test_a_block_starts_as_its_shortcut() -> None:
    network: Any = timm.create_model("rednet26_small", layers=(1, 1), width=32)
    assert torch.count_nonzero(network.layer1[0].bn3.weight) == 0
