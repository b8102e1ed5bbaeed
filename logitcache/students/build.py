"""A student: a network, and what is done to it before it learns.

Networks that are students from the start, one token or stem per teacher say, are models like any
other (:mod:`logitcache.networks`). Surgeries are for networks that come with weights: a teacher's
own, cut down. Their weights are read, but no teacher answers.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Self

from pydantic import model_validator

from logitcache.config import Config
from logitcache.networks.build import NetworkConfig, build_network
from logitcache.students.depth import DepthConfig, shallower
from logitcache.students.linear_probe import make_fingerprint
from logitcache.students.lora import LoraConfig, add_lora, merged

if TYPE_CHECKING:
    from torch import nn

__all__ = ["StudentConfig", "SurgeryConfig", "build_student", "plain"]


class SurgeryConfig(Config):
    """What is done to a network before it learns, in this order.

    Attributes:
        depth: Which blocks are kept; all by default.
        lora: Low-rank updates of the linear layers of every block; nothing else learns then.
        probe: Whether the classifier is a fresh one, and nothing else learns.
    """

    depth: DepthConfig | None = None
    lora: LoraConfig | None = None
    probe: bool = False

    @model_validator(mode="after")
    def _one_learner(self) -> Self:
        if self.probe and self.lora is not None:
            raise ValueError("a probe learns nothing but its classifier: drop lora")
        return self


class StudentConfig(NetworkConfig):
    """Which network, and what is done to it before it learns.

    Attributes:
        surgery: What is done; nothing by default.
    """

    surgery: SurgeryConfig = SurgeryConfig()


def build_student(config: StudentConfig, num_classes: int | None = None) -> nn.Module:
    """Build a student in float32 on the CPU.

    Args:
        config: Which network, and what is done to it.
        num_classes: Size of the head; by default what the weights have, else what timm has.

    Raises:
        UsageError: An unknown name, or a surgery that this network does not bear.
        NetworkError: The weights do not fit, cannot be read, or cannot be fetched.
    """
    network = build_network(config, num_classes)
    if config.surgery.depth is not None:
        network = shallower(network, config, config.surgery.depth)
    if config.surgery.lora is not None:
        add_lora(network, config.surgery.lora)
    if config.surgery.probe:
        make_fingerprint(network)
    return network


def plain(network: nn.Module) -> nn.Module:
    """Return a copy that timm knows: low-rank updates are part of the weights."""
    return merged(copy.deepcopy(network))
