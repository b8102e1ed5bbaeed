"""Branches: further classifiers on intermediate stages of a network.

Source: Yang et al., "Hierarchical Self-supervised Augmented Knowledge Distillation" (HSAKD), IJCAI
2021, and its code: behind a stage, a branch has the remaining stages of the network with weights of
its own, behind the last one that stage once more without a stride, then the mean over positions and
a linear layer.

A branch is a module of the network, ``branches.<stage>``. The network itself does not run it;
:class:`~logitcache.networks.taps.TappedNetwork` does, in the forward pass in which the branch is a
tap. So the network has the outputs, and the cost, of one without branches where nothing taps
them, and a copy of it is independent.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import timm
from timm.models import build_model_with_cfg, generate_default_cfgs, get_model_args, register_model
from torch import nn

from logitcache.errors import UsageError, nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

__all__ = [
    "BRANCHES",
    "Branch",
    "add_branches",
    "branches_of",
    "export_branches",
    "remove_branches",
    "with_branches",
]

BRANCHES = "branches"
"""Name of the module with the branches of a network."""

_MODEL = "with_branches"


class Branch(nn.Module):
    """A classifier on the output of a stage.

    Args:
        source: Name of the stage.
        stages: What follows it: a network from its maps to maps (B, D, H, W).
        channels: Number of channels of these maps, D.
        outputs: Number of outputs.
        own: Whether it is part of the network's model, instead of added to it for training.
    """

    def __init__(
        self, source: str, stages: nn.Module, channels: int, outputs: int, *, own: bool = False
    ) -> None:
        super().__init__()
        self.source = source
        self.own = own
        self.stages = stages
        self.classifier = nn.Linear(channels, outputs)

    def forward(self, map_BDHW: Tensor) -> Tensor:
        """Return logits (B, outputs) for maps of the stage.

        Raises:
            UsageError: The stages do not return maps.
        """
        found, channels = self.stages(map_BDHW), self.classifier.in_features
        if found.ndim != 4 or found.shape[1] != channels:  # B, D, H, W
            raise UsageError(
                "branches need a network with stages of maps (B, D, H, W)",
                where=f"{BRANCHES}.{self.source}",
                expected=f"maps of {channels} channels behind {self.source}",
                got=tuple(found.shape),
                hint="choose a convolutional network of timm",
            )
        logits: Tensor = self.classifier(found.mean((2, 3)))
        return logits


def add_branches(
    network: nn.Module,
    at: Sequence[str],
    outputs: int,
    build: Callable[[], nn.Module],
    *,
    own: bool = False,
) -> None:
    """Add branches to a network, in place.

    Args:
        network: A convolutional network of timm.
        at: Names of the stages.
        outputs: Number of outputs of each branch.
        build: Builds a network of the same architecture with weights of its own.
        own: Whether they are part of the network's model.

    Raises:
        UsageError: The network has no such stage, or one whose branch has no known form.
    """
    info: Any = getattr(network, "feature_info", None)
    if not info or getattr(network, "output_fmt", "NCHW") != "NCHW":
        raise UsageError(
            "branches need a network with stages of maps (B, D, H, W)",
            where="branches.at",
            got=type(network).__name__,
            hint="choose a convolutional network of timm",
        )
    if hasattr(network, BRANCHES):
        raise UsageError(
            "the network already has branches",
            where="branches.at",
            got=", ".join(branches_of(network)) or f"a module {BRANCHES}",
            hint="leave out surgery.branches, or start from a network without them",
        )
    last, channels = str(info[-1]["module"]), int(info[-1]["num_chs"])
    network.add_module(BRANCHES, nn.Module())
    for name in at:
        parent, _, child = f"{BRANCHES}.{name}".rpartition(".")
        holder = _submodule(network, parent)
        behind = _behind(name, last, build)
        holder.add_module(child, Branch(name, behind, channels, outputs, own=own))


def branches_of(network: nn.Module) -> dict[str, Branch]:
    """Return the branches of a network by name; the names are those of taps."""
    modules = network.named_modules()
    return {name: module for name, module in modules if isinstance(module, Branch)}


def export_branches(network: nn.Module, at: Sequence[str], outputs: int) -> None:
    """Let the exports of a network with branches contain them, as the model ``with_branches``."""
    attributes: Any = network
    base = attributes.pretrained_cfg["architecture"]
    own = {"network": base, "branches": list(at), "outputs": outputs}
    attributes._model_args = {**get_model_args(network), **own}
    attributes.pretrained_cfg["architecture"] = _MODEL


def remove_branches(network: nn.Module) -> nn.Module:
    """Remove the branches of a network in place, unless they are exported, and return it."""
    attributes: Any = network
    if hasattr(network, BRANCHES) and attributes.pretrained_cfg["architecture"] != _MODEL:
        delattr(network, BRANCHES)
    return network


def _submodule(network: nn.Module, name: str) -> nn.Module:
    """Return a module below :data:`BRANCHES`, with empty ones above it where there are none."""
    found = network
    for part in name.split("."):
        if part not in dict(found.named_children()):
            found.add_module(part, nn.Module())
        found = found.get_submodule(part)
    return found


def _behind(name: str, last: str, build: Callable[[], nn.Module]) -> nn.Module:
    """Return the layers of the branch behind a stage, with new weights."""
    holder, parent = build(), last.rpartition(".")[0]
    stages = {
        f"{parent}.{child}".removeprefix("."): module
        for child, module in holder.get_submodule(parent).named_children()
    }
    names = list(stages)[: list(stages).index(last) + 1]
    if name not in names:
        raise UsageError(
            f"the network has no stage {name!r} for a branch",
            where="branches.at",
            expected=f"a module that is followed by others up to {last}",
            hint=nearest(name, names),
        )
    if name != last:
        return nn.Sequential(*(stages[behind] for behind in names[names.index(name) + 1 :]))
    return _once_more(name, stages[name], build)


def _once_more(name: str, stage: nn.Module, build: Callable[[], nn.Module]) -> nn.Module:
    """Return the last stage without a stride: as many blocks, each like those after its first."""
    blocks = list(stage.children())
    if not isinstance(stage, nn.Sequential) or len(blocks) < 2:
        raise UsageError(
            "the last stage has no block without a stride to build its branch of",
            where="branches.at",
            expected=f"{name} as a sequence of two blocks or more",
            got=f"{type(stage).__name__} of {len(blocks)} modules",
            hint="choose earlier stages",
        )
    like = blocks[1:]
    while len(like) < len(blocks):
        like += list(build().get_submodule(name).children())[1:]
    return nn.Sequential(*like[: len(blocks)])


default_cfgs = generate_default_cfgs({f"{_MODEL}.untrained": {"url": "", "num_classes": 1000}})


def _branched(network: str, branches: Sequence[str], outputs: int, **kwargs: Any) -> nn.Module:
    # only registered names: the arguments of an export may come from anybody
    if not timm.is_model(network) or network == _MODEL:
        raise ValueError(f"{network!r} is not a model of timm")
    build = partial(timm.create_model, network, **kwargs)
    built = build()
    add_branches(built, branches, outputs, build, own=True)
    return built


@register_model
def with_branches(
    pretrained: bool = False,
    *,
    network: str = "resnet18",
    branches: Sequence[str] = ("layer1", "layer2", "layer3", "layer4"),
    outputs: int = 4000,
    **kwargs: Any,
) -> nn.Module:
    """Any convolutional network of timm, with branches."""
    built: nn.Module = build_model_with_cfg(
        partial(_branched, network, branches, outputs), _MODEL, pretrained, **kwargs
    )
    return built
