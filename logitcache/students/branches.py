"""Branches of a student: further classifiers during training; see ``networks/branches.py``."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from logitcache.config import Config
from logitcache.networks.branches import add_branches, export_branches
from logitcache.networks.build import build_network, num_classes_of

if TYPE_CHECKING:
    from torch import nn

    from logitcache.networks.build import NetworkConfig

__all__ = ["BranchesConfig", "prepare_branches"]


class BranchesConfig(Config):
    """Settings of branches.

    Attributes:
        at: Stages with a branch; that of ``layer1`` is the student layer ``branches.layer1``.
        classes: Number of outputs of each branch; ``x4`` for four times the classes of the network,
            as for joint labels in four views.
        export: Whether the exported network has the branches, as a teacher needs whose outputs of
            branches are cached; otherwise it is the network without them.
    """

    at: list[str] = Field(min_length=1)
    classes: Annotated[int, Field(ge=1)] | Annotated[str, Field(pattern=r"^x[1-9]\d{0,3}$")] = "x1"
    export: bool = False


def prepare_branches(
    network: nn.Module, settings: BranchesConfig, config: NetworkConfig
) -> nn.Module:
    """Add branches to a network in place, and return it.

    Raises:
        UsageError: The network has no such stage.
    """
    classes, own = settings.classes, num_classes_of(network)
    outputs = classes if isinstance(classes, int) else int(classes.removeprefix("x")) * own
    add_branches(network, settings.at, outputs, partial(build_network, config, own, untrained=True))
    if settings.export:
        export_branches(network, settings.at, outputs)
    return network
