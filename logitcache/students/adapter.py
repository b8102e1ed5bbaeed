"""Residual adapters before a frozen classifier, which may be a table of class vectors.

Source: SgVA-CLIP, see :mod:`logitcache.networks.adapter`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from logitcache.config import Config
from logitcache.errors import UsageError
from logitcache.networks.adapter import Adapter, AdapterHead, TableClassifier
from logitcache.students.class_table import read_class_table
from logitcache.students.training_layer import linear_classifier

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from logitcache.networks.build import NetworkConfig

__all__ = ["AdapterConfig", "add_adapter", "set_class_table"]


class AdapterConfig(Config):
    """Settings of an adapter before the classifier; the network before it is frozen.

    Attributes:
        hidden: Number of channels of its hidden layer, or ``x2`` for twice those of the vectors.
        share: Share of the adapted vector at the beginning; it is learned.
        table: File with a vector for each class, which replaces the classifier by one over unit
            vectors: ``.npz`` or ``.safetensors`` with a vector under the name of each class, or
            ``.npy`` with a row for each. It is frozen. By default the classifier is the network's
            own, and is trained with the adapter.
        scale: Factor of the logits of the table.
    """

    hidden: Annotated[int, Field(ge=1)] | Annotated[str, Field(pattern=r"^x[1-9]\d*$")] = "x2"
    share: float = Field(default=0.5, ge=0, le=1)
    table: str | None = None
    scale: float = Field(default=100.0, gt=0)

    @property
    def reads(self) -> tuple[str, ...]:
        """Files that the surgery reads: the class table."""
        return () if self.table is None else (self.table,)

    def width(self, channels: int) -> int:
        """Return the number of channels of the hidden layer, for vectors of so many channels."""
        found = self.hidden
        return found if isinstance(found, int) else int(found.removeprefix("x")) * channels


def add_adapter(network: nn.Module, config: AdapterConfig, _: NetworkConfig) -> nn.Module:
    """Freeze a network and put an adapter before its classifier, in place.

    A class table follows with :func:`set_class_table`, when the names of the classes are known.

    Raises:
        UsageError: The network has no linear classifier.
    """
    network.requires_grad_(False)
    name, linear = linear_classifier(network, "an adapter", "student.surgery.adapter")
    width = config.width(linear.in_features)
    head = AdapterHead(
        Adapter(linear.in_features, width, config.share), linear.requires_grad_(True)
    )
    network.set_submodule(name, head)
    cfg: Any = network.pretrained_cfg
    cfg["classifier"] = f"{name}.classifier"  # the part whose rows are classes
    return network


def set_class_table(
    network: nn.Module, config: AdapterConfig, names: Sequence[str] | None
) -> nn.Module:
    """Replace the classifier behind an adapter by the class table, if there is one, in place.

    Args:
        network: A network of :func:`add_adapter`.
        config: Settings of the adapter.
        names: Names of the network's classes in order; None if they are not known.

    Raises:
        UsageError: The table cannot be read, lacks a class, or has vectors of another length.
    """
    if config.table is None:
        return network
    table = read_class_table(Path(config.table).expanduser())
    cfg: Any = network.pretrained_cfg
    before: Any = network.get_submodule(cfg["classifier"])
    rows = table.rows_of(names, before.out_features)
    if table.vectors.shape[1] != before.in_features:
        raise UsageError(
            "the vectors of the class table have another length than those of the network",
            where=table.path,
            expected=f"{before.in_features} numbers, as the input of the classifier has",
            got=f"{table.vectors.shape[1]} numbers",
            hint="for text embeddings, multiply them with the projection of the image tower: "
            "docs/systems.md has the line",
        )
    network.set_submodule(cfg["classifier"], TableClassifier(table.vectors[rows], config.scale))
    cfg["label_names"] = None if names is None else list(names)
    return network
