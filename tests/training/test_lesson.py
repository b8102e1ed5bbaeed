from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2
from torch import nn

from logitcache.batch import Features, Outputs, TargetBatch
from logitcache.errors import UsageError
from logitcache.objectives.combine import ObjectiveConfig, WeightedSum, build_objective
from logitcache.objectives.term import Needs, TermConfig
from logitcache.training.optimization.trainable_student import TrainableStudent

if TYPE_CHECKING:
    from torch import Tensor

VIT: dict[str, Any] = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
HELD = {"t/x": Features(torch.zeros(1, 6), "vector")}


def vit(model: str = "vit_tiny_patch16_224") -> nn.Module:
    torch.manual_seed(0)
    network: nn.Module = timm.create_model(model, num_classes=3, **VIT)
    return network


class GuessConfig(TermConfig):
    """What the student held in the middle, projected to what the teacher held."""

    @property
    def needs(self) -> Needs:
        return Needs(features=("t/x",), taps=("blocks.0",))


class Guess(nn.Module):
    """An objective with a parameter of its own."""

    def fit(self, outputs: Outputs, targets: TargetBatch) -> None:
        held, wanted = outputs.features["blocks.0"].values, targets.features["t/x"].values
        self.project = nn.Linear(held.shape[-1], wanted.shape[-1])

    def forward(self, outputs: Outputs, targets: TargetBatch) -> Tensor:
        held: Tensor = self.project(outputs.features["blocks.0"].values).mean(1)
        return (held - targets.features["t/x"].values).square().mean()


def guess() -> WeightedSum:
    return WeightedSum([("guess", GuessConfig(), Guess())])


def test_an_objective_gets_what_its_taps_hold_and_learns_too() -> None:
    network, objective = vit(), guess()
    trainable = TrainableStudent(network, objective, size=8, features=HELD)
    names = [name for name, _ in trainable.named_parameters()]
    assert {"objective.guess.project.weight", "objective.guess.project.bias"} < set(names)
    images = torch.randn(4, 3, 8, 8)
    outputs = trainable.outputs(trainable(images))
    torch.testing.assert_close(outputs.logits, network(images))
    held = outputs.features["blocks.0"]
    assert (held.layout, tuple(held.values.shape), held.grid, held.prefix_tokens) == (
        "NLC", (4, 5, 16), 2, 1,
    )  # fmt: skip
    targets = TargetBatch(
        torch.arange(4),
        torch.arange(4),
        {},
        features={"t/x": Features(torch.randn(4, 6), "vector")},
    )
    torch.autograd.backward(objective(outputs, targets))
    assert all(p.grad is not None for p in objective.parameters())
    assert sum(p.numel() for p in objective.parameters()) == 17 * 6


def test_without_taps_the_network_is_left_alone() -> None:
    network = vit()
    objective = build_objective([ObjectiveConfig.model_validate("label")])
    trainable = TrainableStudent(network, objective, size=8, features={})
    assert trainable.network is network
    assert sum(p.numel() for p in trainable.parameters()) == sum(
        p.numel() for p in network.parameters()
    )


def test_the_networks_wishes_about_decay_are_kept() -> None:
    network = vit()
    trainable = TrainableStudent(
        network, guess(), size=8, features={"t/x": Features(torch.zeros(1, 6), "vector")}
    )
    names = {id(p): name for name, p in trainable.named_parameters()}

    def spared(module: nn.Module) -> set[str]:
        groups = create_optimizer_v2(module, opt="sgd", lr=1.0, weight_decay=0.5).param_groups
        return {
            names[id(p)].removeprefix("network.network.")
            for group in groups
            if group["weight_decay"] == 0
            for p in group["params"]
        }

    assert "pos_embed" in spared(network)
    assert spared(trainable) == spared(network) | {"objective.guess.project.bias"}


def test_a_second_head_is_asked_by_its_name() -> None:
    network = vit("deit_tiny_distilled_patch16_224")
    objective = build_objective([ObjectiveConfig.model_validate({"label": {"head": "head_dist"}})])
    trainable = TrainableStudent(network.eval(), objective, size=8, features={})
    outputs = trainable.outputs(trainable(torch.randn(2, 3, 8, 8)))
    assert outputs.logits_of("head_dist").shape == (2, 3)
    assert not torch.equal(outputs.logits_of("head_dist"), outputs.logits)
    with pytest.raises(UsageError, match="no module 'head_dst'"):
        TrainableStudent(
            network,
            build_objective([ObjectiveConfig.model_validate({"label": {"head": "head_dst"}})]),
            size=8,
            features={},
        )
