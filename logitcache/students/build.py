"""Students: networks with the surgeries that prepare them for training.

Networks that are designed as students, for instance with one token per teacher, are ordinary models
(:mod:`logitcache.networks`). Surgeries change pretrained networks, for instance to a teacher with
fewer blocks; the weights of that teacher are loaded, but it is never run.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Annotated, Self

from pydantic import Field, model_validator

from logitcache.errors import UsageError
from logitcache.networks.build import NetworkConfig, build_network
from logitcache.networks.forms import FORMS, form_of
from logitcache.students.surgery import SURGERIES, SurgeryConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

__all__ = ["StudentConfig", "build_student", "completed", "converted"]


class StudentConfig(NetworkConfig):
    """A network, and changes of it before training.

    Attributes:
        surgery: Changes of the network before training; none by default.
        head_on: Cached vectors that the classifier is trained on, as ``<teacher>/<tap>``, instead
            of the images: the network has to be that teacher, and the tap the input of its
            classifier (``pre_logits``). All other weights keep their values.
    """

    surgery: SurgeryConfig = SurgeryConfig()
    head_on: Annotated[str, Field(pattern=r"^[^/]+/.+$")] | None = None

    @model_validator(mode="after")
    def _vectors_of_this_network(self) -> Self:
        """Refuse surgeries whose network would have other vectors than the cached ones."""
        others = [name for name in self.surgery.chosen if not SURGERIES[name].classifier_only]
        if self.head_on is not None and others:
            fitting = [name for name, surgery in SURGERIES.items() if surgery.classifier_only]
            raise ValueError(
                f"head_on trains the classifier alone, on vectors of the network without the "
                f"surgery {others[0]}: remove it, or head_on; with head_on, the surgery can be "
                f"{' or '.join(fitting)}"
            )
        return self


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


def completed(network: nn.Module, config: StudentConfig, names: Sequence[str] | None) -> nn.Module:
    """Finish the surgeries of a student once the names of its classes are known.

    Args:
        network: The student of :func:`build_student`; may be changed in place.
        config: The network and its surgeries.
        names: Names of its classes in order; None if they are not known.
    """
    for name, settings in config.surgery.chosen.items():
        network = SURGERIES[name].complete(network, settings, names)
    return network


def converted(network: nn.Module) -> nn.Module:
    """Return a copy of a student that timm can load, with all surgeries converted."""
    # a copy, since training may continue, and merging updates into weights cannot be undone
    copied = copy.deepcopy(network)
    for surgery in reversed(SURGERIES.values()):
        copied = surgery.convert(copied)
    return copied
