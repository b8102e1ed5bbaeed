"""Surgeries: changes of a pretrained network before training, and their removal before export."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from pydantic import create_model, model_validator

from logitcache.config import Config
from logitcache.networks.adapter import adapted
from logitcache.networks.branches import remove_branches
from logitcache.students.adapter import AdapterConfig, add_adapter, set_class_table
from logitcache.students.branches import BranchesConfig, prepare_branches
from logitcache.students.depth import DepthConfig, keep_blocks
from logitcache.students.fake_quant import FakeQuantConfig, fake_quantize, quantized_note
from logitcache.students.linear_probe import ProbeConfig, add_probe
from logitcache.students.lora import LoraConfig, add_lora
from logitcache.students.training_layer import plain_network

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

    from logitcache.networks.build import NetworkConfig

__all__ = ["SURGERIES", "Surgery", "SurgeryConfig"]


@dataclass(frozen=True)
class Surgery:
    """A change of a network, as functions before and after training.

    Attributes:
        config: Class of its settings; YAML gives them as the value of its name.
        prepare: Changes a network before training. Takes the network, the settings, and the
            configuration that the network was built from; returns the changed network, which may
            be the same one.
        convert: Turns a trained network into one that timm can load, possibly in place; networks
            without this surgery are returned unchanged.
        complete: Called after ``prepare``, once the names of the classes are known (None if they
            are not), with network, settings and names; returns the network.
        note: Returns what a user of the exported network has to know, from the settings; None for
            nothing.
        classifier_only: Whether everything before the classifier is left as it is, so that cached
            inputs of the classifier remain those of the network.
    """

    config: type[Config]
    prepare: Callable[[nn.Module, Any, NetworkConfig], nn.Module]
    convert: Callable[[nn.Module], nn.Module] = lambda network: network
    complete: Callable[[nn.Module, Any, Sequence[str] | None], nn.Module] = (
        lambda network, settings, names: network
    )
    note: Callable[[Any], str | None] = lambda settings: None
    classifier_only: bool = False


SURGERIES: dict[str, Surgery] = {
    "depth": Surgery(DepthConfig, keep_blocks),
    "lora": Surgery(LoraConfig, add_lora, plain_network),
    "probe": Surgery(ProbeConfig, add_probe, plain_network, classifier_only=True),
    "adapter": Surgery(AdapterConfig, add_adapter, adapted, set_class_table, classifier_only=True),
    "branches": Surgery(BranchesConfig, prepare_branches, remove_branches),
    "fake_quant": Surgery(FakeQuantConfig, fake_quantize, plain_network, note=quantized_note),
}
"""Surgeries by name, in the order of preparation; conversion is in reverse order."""

if TYPE_CHECKING:
    _OneField = Config
else:
    # a field for each surgery, so that one that is misspelled is an unknown option
    _OneField = create_model(
        "_OneField",
        __base__=Config,
        **{name: (surgery.config | None, None) for name, surgery in SURGERIES.items()},
    )


class SurgeryConfig(_OneField):
    """Changes of a network before training, in this order.

    Attributes:
        depth: Depth pruning: the blocks to keep; all by default.
        lora: Low-rank updates of the linear layers of every block; all other weights are frozen.
        probe: Linear probe: a new classifier; all other weights are frozen.
        adapter: Residual adapter before the classifier; the network before it is frozen.
        branches: Further classifiers on intermediate stages, for training alone.
        fake_quant: Fake quantization: weights, and possibly activations, are rounded.
    """

    @model_validator(mode="before")
    @classmethod
    def _off(cls, values: object) -> object:
        """Read ``false`` as not chosen, as version 0.1 wrote it for the probe."""
        if not isinstance(values, Mapping):
            return values
        return {name: value for name, value in values.items() if value is not False}

    @model_validator(mode="after")
    def _one_learner(self) -> Self:
        if self.chosen.keys() >= {"probe", "lora"}:
            raise ValueError("a probe trains its classifier only: remove lora, or remove probe")
        for other in ("lora", "probe"):
            if self.chosen.keys() >= {"adapter", other}:
                raise ValueError(f"an adapter freezes the network before it: remove {other}")
        if self.chosen.keys() >= {"fake_quant", "lora"}:
            raise ValueError(
                "low-rank updates merged into rounded weights would not be rounded: remove "
                "lora, or remove fake_quant"
            )
        return self

    @property
    def chosen(self) -> dict[str, Config]:
        """Settings of the surgeries that were chosen, by name, in the order of the table."""
        settings = {name: getattr(self, name) for name in SURGERIES}
        return {name: value for name, value in settings.items() if value is not None}

    @property
    def reads(self) -> list[str]:
        """Files that the surgeries read, such as those of earlier stages."""
        return [
            file for settings in self.chosen.values() for file in getattr(settings, "reads", ())
        ]

    @property
    def notes(self) -> list[str]:
        """What a user of the exported network has to know."""
        found = (SURGERIES[name].note(settings) for name, settings in self.chosen.items())
        return [note for note in found if note is not None]
