"""Published layouts of names that timm, or the model's own module, translates."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
import timm
import torch
import torchvision

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
