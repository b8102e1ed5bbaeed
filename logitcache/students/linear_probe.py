"""Linear probes: a new classifier on a frozen network, optionally with batch norm.

Source of the batch norm: He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022,
appendix A.1; WeCoLoRA (see ``depth.py``) uses it for evaluation. It has no learned parameters, and
is folded into the classifier for export. The initialization is that of their code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from pydantic import model_validator
from torch import nn

from logitcache.config import Config
from logitcache.errors import UsageError
from logitcache.networks.build import classifier_of, num_classes_of
from logitcache.students.training_layer import TrainingLayer, linear_classifier, linear_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from logitcache.networks.build import NetworkConfig

__all__ = ["NormalizedLinear", "ProbeConfig", "add_probe"]

_INITIAL_STD = 0.01


class ProbeConfig(Config):
    """Settings of a linear probe; ``true`` for all defaults.

    Attributes:
        normalize: Whether the features are normalized by batch norm without a learned scale.
    """

    normalize: bool = False

    @model_validator(mode="before")
    @classmethod
    def _from_true(cls, value: object) -> object:
        return {} if value is True else value


class NormalizedLinear(TrainingLayer):
    """Batch norm without learned parameters, then a linear layer.

    Args:
        linear: The linear layer, from D features to C classes.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(linear.in_features, affine=False, eps=1e-6)
        self.linear = linear

    def forward(self, features_BD: Tensor) -> Tensor:
        """Map features (B, D) to logits (B, C)."""
        logits_BC: Tensor = self.linear(self.norm(features_BD))
        return logits_BC

    def plain(self) -> nn.Linear:
        """Return a linear layer with the same output in evaluation mode.

        With running mean m and variance v: W' = W / sqrt(v + eps), b' = b - W' m.
        """
        mean_D, variance_D = self.norm.running_mean, self.norm.running_var
        assert mean_D is not None
        assert variance_D is not None
        weight_CD = self.linear.weight / (variance_D + self.norm.eps).sqrt()
        return linear_of(weight_CD, self.linear.bias - weight_CD @ mean_D)


def add_probe(network: nn.Module, config: ProbeConfig, _: NetworkConfig) -> nn.Module:
    """Freeze a network and replace its classifier, in place.

    The weights of a linear classifier are drawn with a standard deviation of 0.01; biases are zero.

    Raises:
        UsageError: The network has several classifiers, or one that cannot be normalized.
    """
    # a method of timm's networks, where PyTorch knows modules and tensors
    reset = cast("Callable[[int], None]", network.reset_classifier)
    network.requires_grad_(False)
    if isinstance(classifier_of(network), nn.Module):
        reset(num_classes_of(network))
    classifier = classifier_of(network)
    if not isinstance(classifier, nn.Module):
        raise UsageError(
            "a linear probe needs a network with a single classifier",
            where="student.surgery.probe",
            got="several classifiers",
            hint="choose another network",
        )
    classifier.requires_grad_(True)
    if isinstance(classifier, nn.Linear):
        nn.init.trunc_normal_(classifier.weight, std=_INITIAL_STD)
        nn.init.zeros_(classifier.bias)
    if config.normalize:
        where = "student.surgery.probe.normalize"
        name, linear = linear_classifier(network, "the normalized probe", where)
        network.set_submodule(name, NormalizedLinear(linear))
    return network
