"""Branches: classifiers on stages, which are run where they are taps and nowhere else."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import timm
import torch

from logitcache.errors import NetworkError, UsageError
from logitcache.networks.branches import add_branches, branches_of, export_branches
from logitcache.networks.build import NetworkConfig, build_network, input_spec
from logitcache.networks.taps import TappedNetwork
from logitcache.training.export.export import export_network

if TYPE_CHECKING:
    from pathlib import Path

KWARGS: dict[str, Any] = {"channels": [8, 8, 16, 16], "stem_width": 8, "layers": [1, 1, 1, 2]}
IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
STAGES = ["layer1", "layer3", "layer4"]


def plain() -> Any:
    torch.manual_seed(0)
    return timm.create_model("resnet10t", num_classes=5, **KWARGS)


def branched(at: list[str]) -> Any:
    network = plain()
    add_branches(network, at, 20, plain_again)
    return network


def plain_again() -> Any:
    return timm.create_model("resnet10t", num_classes=5, **KWARGS)


def shapes(module: torch.nn.Module) -> list[tuple[int, ...]]:
    return [tuple(parameter.shape) for parameter in module.parameters()]


def test_a_branch_has_the_remaining_stages_with_weights_of_its_own() -> None:
    network = branched(STAGES)
    assert list(branches_of(network)) == [f"branches.{name}" for name in STAGES]
    behind = network.branches.layer1.stages
    own = [network.layer2, network.layer3, network.layer4]
    assert shapes(behind) == [shape for stage in own for shape in shapes(stage)]
    assert not torch.equal(behind[0][0].conv1.weight, network.layer2[0].conv1.weight)
    assert shapes(network.branches.layer3.stages) == shapes(network.layer4)
    blocks = network.branches.layer4.stages
    assert [shapes(block) for block in blocks] == [shapes(network.layer4[1])] * 2
    assert not torch.equal(blocks[0].conv1.weight, blocks[1].conv1.weight)


def test_a_branch_is_run_on_its_stage_where_it_is_a_tap() -> None:
    taps = [*branches_of(branched(STAGES)), "layer1"]
    inner = branched(STAGES)
    network = TappedNetwork(inner, taps, size=32).eval()
    logits, caught = network(IMAGES)
    assert torch.equal(logits, plain().eval()(IMAGES))
    for stage in STAGES:
        _, alone = TappedNetwork(plain(), [stage], size=32).eval()(IMAGES)
        branch = inner.branches.get_submodule(stage)
        expected = branch.classifier(branch.stages(alone[stage]).mean((2, 3)))
        assert torch.equal(caught[f"branches.{stage}"], expected)
        assert network.shapes[f"branches.{stage}"].layout == "vector"
    torch.autograd.backward(caught["branches.layer1"].square().sum())
    assert inner.conv1[0].weight.grad.any()
    assert inner.layer2[0].conv1.weight.grad is None


def test_copies_and_plain_forward_passes_leave_branches_alone() -> None:
    """A copy, such as a moving average, has statistics of its own; no branch is run by others."""
    network = branched(["layer1"]).train()
    copied = copy.deepcopy(network)
    before = copy.deepcopy(network.state_dict())
    TappedNetwork(copied, ["branches.layer1"], size=32).train()(IMAGES)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    network(IMAGES)
    moved = {name for name, value in network.state_dict().items() if (value != before[name]).any()}
    assert moved
    assert not any(name.startswith("branches.") for name in moved)


@pytest.mark.parametrize("stage", ["layer1", "layer4"])
def test_an_export_with_branches_is_a_model_of_timm(tmp_path: Path, stage: str) -> None:
    network = branched([stage]).eval()
    export_branches(network, [stage], 20)
    export_network(network, input_spec(network, 32), tmp_path)
    loaded = build_network(NetworkConfig(model=f"local-dir:{tmp_path}"))
    tap = f"branches.{stage}"
    for ours, theirs in zip(
        TappedNetwork(network, [tap], size=32)(IMAGES),
        TappedNetwork(loaded.eval(), [tap], size=32)(IMAGES),
        strict=True,
    ):
        if isinstance(ours, dict):
            ours, theirs = ours[tap], theirs[tap]
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("network", "at", "message"),
    [
        ("resnet10t", "layer5", "no stage 'layer5'"),
        ("resnet10t", "layer1.0", "no stage 'layer1.0'"),
        ("resnet10t", "fc", "no stage 'fc'"),
        ("resnet10t", "layer4", "no block without a stride"),
        ("swin_tiny_patch4_window7_224", "layers.0", "stages of maps"),
    ],
)
def test_stages_without_a_known_branch_are_refused(network: str, at: str, message: str) -> None:
    with torch.device("meta"):
        build = timm.create_model(network)
        with pytest.raises(UsageError, match=message):
            add_branches(build, [at], 4, lambda: timm.create_model(network))


def test_networks_of_tokens_are_refused() -> None:
    kwargs: dict[str, Any] = {"img_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 2}

    def build() -> Any:
        return timm.create_model("vit_tiny_patch16_224", num_classes=5, **kwargs)

    network = build()
    add_branches(network, ["blocks.0"], 4, build)
    with pytest.raises(UsageError, match="stages of maps"):
        TappedNetwork(network, ["branches.blocks.0"], size=32)


def test_branches_are_added_once() -> None:
    with pytest.raises(UsageError, match="already has branches"):
        add_branches(branched(["layer1"]), ["layer2"], 4, plain_again)


@pytest.mark.parametrize("name", ["local-dir:/somewhere", "hf-hub:some/where", "with_branches"])
def test_arguments_of_an_export_name_no_other_place(name: str) -> None:
    config = NetworkConfig(model="with_branches", kwargs={"network": name})
    with pytest.raises(NetworkError, match="is not a model of timm"):
        build_network(config, 5)
