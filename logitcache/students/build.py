"""Students: networks with the surgeries that prepare them for training.

Networks that are designed as students, for instance with one token per teacher, are ordinary models
(:mod:`logitcache.networks`). Surgeries change pretrained networks, for instance to a teacher with
fewer blocks; the weights of that teacher are loaded, but it is never run.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from logitcache.errors import UsageError
from logitcache.networks.build import NetworkConfig, build_network
from logitcache.networks.forms import FORMS, form_of
from logitcache.students.surgery import SURGERIES, SurgeryConfig

if TYPE_CHECKING:
    from torch import nn

__all__ = ["StudentConfig", "build_student", "converted"]


class StudentConfig(NetworkConfig):
    """A network, and changes of it before training.

    Attributes:
        surgery: Changes of the network before training; none by default.
    """

    surgery: SurgeryConfig = SurgeryConfig()


def build_student(config: StudentConfig, num_classes: int | None = None) -> nn.Module:
    """Build a student in float32 on the CPU.

    Args:
        config: The network and its surgeries.
        num_classes: Number of outputs; by default that of the weights, or else that of timm.

    Raises:
        UsageError: An unknown name, or a surgery that is not possible with this network.
        NetworkError: The weights do not fit, cannot be read, or cannot be downloaded.
    """
    form = form_of(config.model)
    if not form.student:
        raise UsageError(
            f"a network of the form {form.notation} cannot be a student yet",
            where=config.model,
            expected=" or ".join(f.notation for f in FORMS.values() if f.student),
            hint="use a network of timm as the student; networks of every form can be teachers",
        )
    network = build_network(config, num_classes)
    for name, settings in config.surgery.chosen.items():
        network = SURGERIES[name].prepare(network, settings, config)
    return network


def converted(network: nn.Module) -> nn.Module:
    """Return a copy of a student that timm can load, with all surgeries converted."""
    # a copy, since training may continue, and merging updates into weights cannot be undone
    copied = copy.deepcopy(network)
    for surgery in reversed(SURGERIES.values()):
        copied = surgery.convert(copied)
    return copied
