"""Students: networks with the surgeries that prepare them for training.

Networks that are designed as students, with one token or stem per teacher for instance, are models
like any other (:mod:`logitcache.networks`). Surgeries are for pretrained networks, such as a
teacher with fewer blocks. The weights of that teacher are loaded, but it is never run.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from logitcache.networks.build import NetworkConfig, build_network
from logitcache.students.surgery import SURGERIES, SurgeryConfig

if TYPE_CHECKING:
    from torch import nn

__all__ = ["StudentConfig", "build_student", "converted"]


class StudentConfig(NetworkConfig):
    """A network, and changes of it before training.

    Attributes:
        surgery: The changes; none by default.
    """

    surgery: SurgeryConfig = SurgeryConfig()


def build_student(config: StudentConfig, num_classes: int | None = None) -> nn.Module:
    """Build a student in float32 on the CPU.

    Args:
        config: The network and its surgeries.
        num_classes: Size of the head; by default what the weights have, else what timm has.

    Raises:
        UsageError: An unknown name, or a surgery that is not possible with this network.
        NetworkError: The weights do not fit, cannot be read, or cannot be fetched.
    """
    network = build_network(config, num_classes)
    for name, settings in config.surgery.chosen.items():
        network = SURGERIES[name].prepare(network, settings, config)
    return network


def converted(network: nn.Module) -> nn.Module:
    """Return a copy of a student that timm can load: surgeries are undone, the last one first."""
    copied = copy.deepcopy(network)
    for surgery in reversed(SURGERIES.values()):
        copied = surgery.convert(copied)
    return copied
