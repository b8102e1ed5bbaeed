"""Published layouts of names that timm, or the model's own module, translates."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
import timm
import torch
import torchvision

from logitcache.errors import NetworkError
from logitcache.networks.build import NetworkConfig, build_network
from tests.networks.naive_rednet import published_checkpoint
from tests.networks.test_weights import VIT, assert_same, load_saved, state_of, under

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import nn

    from tests.networks.test_weights import State


@pytest.mark.parametrize(
    ("tv", "model"),
    [
        (lambda: torchvision.models.resnet18(num_classes=4), "resnet18"),
        (lambda: torchvision.models.regnet_y_400mf(num_classes=4), "regnety_004"),
    ],
)
def test_files_of_torchvision_that_timm_translates_give_the_same_logits(
    tv: Callable[[], nn.Module], model: str, tmp_path: Path
) -> None:
    theirs = tv().eval()
    torch.save({"model": under("module.", theirs.state_dict())}, tmp_path / "w.pth")
    ours = build_network(NetworkConfig(model=model, weights=str(tmp_path / "w.pth"))).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images))


def published_swin(state: State) -> State:
    """Return the weights of a Swin in the names of its authors, with their constant buffers."""
    renamed = {
        re.sub(r"layers\.1\.downsample", "layers.0.downsample", n).replace("head.fc.", "head."): t
        for n, t in state.items()
    }
    return {**renamed, "layers.0.blocks.0.attn.relative_position_index": torch.zeros(49, 49)}


@pytest.mark.parametrize("prefix", ["", "model.", "module.model."])
def test_layouts_that_timm_translates_are_translated_under_any_prefix(
    prefix: str, tmp_path: Path
) -> None:
    content = {"model": under(prefix, published_swin(state_of("swin")))}
    assert_same(load_saved(tmp_path, content, "swin"), state_of("swin"))
    assert_same(load_saved(tmp_path, content, "swin", 9), state_of("swin"))


def test_the_layer_scale_of_published_deit3_files_is_found(tmp_path: Path) -> None:
    kwargs = {**VIT, "img_size": 16}
    network = timm.create_model("deit3_small_patch16_224", num_classes=4, **kwargs)
    renamed = {
        re.sub(r"ls([12])\.gamma", r"gamma_\1", n): t for n, t in network.state_dict().items()
    }
    assert renamed.keys() != network.state_dict().keys()
    path = tmp_path / "deit3.pth"
    torch.save({"model": renamed}, path)
    config = NetworkConfig(model="deit3_small_patch16_224", weights=str(path), kwargs=kwargs)
    assert_same(build_network(config), network.state_dict())


@pytest.mark.parametrize("prefix", ["", "module.", "net.teacher."])
def test_a_published_rednet_keeps_its_classifier_under_any_prefix(
    prefix: str, tmp_path: Path
) -> None:
    state = under(prefix, published_checkpoint((1, 2, 4, 1), 3))
    torch.save({"state_dict": state, "meta": {"epoch": 1}}, tmp_path / "w.pth")
    network = build_network(NetworkConfig(model="rednet26", weights=str(tmp_path / "w.pth")))
    assert torch.equal(network.state_dict()["fc.weight"], state[f"{prefix}head.fc.weight"])


def in_names_of_efficientnet_pytorch(state: State) -> State:
    """Return the weights of an EfficientNet of timm under the names of efficientnet-pytorch."""
    blocks = list(dict.fromkeys(re.findall(r"blocks\.(\d+)\.(\d+)\.", " ".join(state))))
    layers = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1"}
    renamed = {}
    for name, tensor in state.items():
        layer, _, field = name.rpartition(".")
        found = re.fullmatch(r"blocks\.(\d+)\.(\d+)\.(.+)", layer)
        if found is None:
            renamed[f"{layers.get(layer, '_fc')}.{field}"] = tensor
            continue
        stage, index, inner = found.groups()
        expanded = f"blocks.{stage}.{index}.conv_pwl.weight" in state
        names = (
            {"conv_pw": "_expand_conv", "bn1": "_bn0", "bn2": "_bn1", "bn3": "_bn2"}
            if expanded
            else {"conv_pw": "_project_conv", "bn1": "_bn1", "bn2": "_bn2"}
        )
        names |= {"conv_dw": "_depthwise_conv", "conv_pwl": "_project_conv"}
        names |= {"se.conv_reduce": "_se_reduce", "se.conv_expand": "_se_expand"}
        renamed[f"_blocks.{blocks.index((stage, index))}.{names[inner]}.{field}"] = tensor
    return renamed


@pytest.mark.parametrize("model", ["tf_efficientnet_lite0", "tf_efficientnet_b0"])
def test_files_of_efficientnet_pytorch_give_the_same_logits(model: str, tmp_path: Path) -> None:
    theirs = timm.create_model(model, num_classes=5).eval()
    state = in_names_of_efficientnet_pytorch(theirs.state_dict())
    torch.save(state, tmp_path / "w.pth")
    ours = build_network(NetworkConfig(model=model, weights=str(tmp_path / "w.pth"))).eval()
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=0, atol=0)


def test_an_efficientnet_with_other_padding_refuses_the_file(tmp_path: Path) -> None:
    theirs = timm.create_model("tf_efficientnet_lite0", num_classes=5)
    torch.save(in_names_of_efficientnet_pytorch(theirs.state_dict()), tmp_path / "w.pth")
    with pytest.raises(NetworkError, match="do not fit"):
        build_network(NetworkConfig(model="efficientnet_lite0", weights=str(tmp_path / "w.pth")))
