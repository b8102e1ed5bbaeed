"""Networks by name: timm models, exported folders, torchvision, code of the user, programs.

A teacher and a student are built by the same function. Nothing here downloads unless the user
writes ``weights: pretrained`` or an ``hf-hub:`` name.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from timm.data import ImageNetInfo, infer_imagenet_subset
from timm.data.model_config import resolve_input_data_config
from timm.models import model_entrypoint
from torch import Tensor

from logitcache.errors import UsageError
from logitcache.networks.config import PRETRAINED, InputSpec, NetworkConfig
from logitcache.networks.forms import LOCAL, form_of, kind_of_name
from logitcache.networks.from_file import POSITIONS
from logitcache.networks.module_factory import build_from_factory
from logitcache.networks.programs import build_exported, build_torchscript, check_program
from logitcache.networks.timm_attributes import CODE, override_input
from logitcache.networks.timm_models import build_from_timm, check_timm_name
from logitcache.networks.torchvision_models import build_from_torchvision, check_torchvision_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

__all__ = [
    "BUILDERS",
    "InputSpec",
    "NetworkConfig",
    "architecture",
    "build_network",
    "check_model_name",
    "class_names_of",
    "classifier_of",
    "input_spec",
    "is_own_model",
    "num_classes_of",
    "size_is_default",
    "size_is_known",
]

_RGB = 3


class Build(Protocol):
    """A function that builds a network; see :func:`build_network`."""

    def __call__(
        self, config: NetworkConfig, num_classes: int | None, *, untrained: bool = False
    ) -> nn.Module:
        """Build a network in float32 on the CPU."""


@dataclass(frozen=True)
class Builder:
    """Functions for one form of names.

    Attributes:
        build: Builds a network from its settings and its number of classes, see
            :func:`build_network`.
        check: Refuses a name that stands for no network, before anything is built.
    """

    build: Build
    check: Callable[[str], None]


BUILDERS: dict[str, Builder] = {
    "local-dir": Builder(build_from_timm, check_timm_name),
    "hf-hub": Builder(build_from_timm, check_timm_name),
    "torchvision": Builder(build_from_torchvision, check_torchvision_name),
    "exported": Builder(build_exported, check_program),
    "torchscript": Builder(build_torchscript, check_program),
    "factory": Builder(build_from_factory, lambda name: None),
    "timm": Builder(build_from_timm, check_timm_name),
}
"""Functions that build networks, under the keys of :data:`logitcache.networks.forms.FORMS`."""


def build_network(
    config: NetworkConfig, num_classes: int | None = None, *, untrained: bool = False
) -> nn.Module:
    """Build a network in float32 on the CPU.

    Args:
        config: Settings.
        num_classes: Number of classes of a student: where the weights have another number, or no
            classifier, it is newly initialized; 0 for a network without a classifier. By default,
            for a teacher, the classifier is that of the weights, or else timm's.
        untrained: Whether to ignore the configured weights and initialize new ones.

    Raises:
        UsageError: The name is unknown (the message has the nearest known ones), the input is not
            RGB, or there are no classes.
        NetworkError: The weights do not fit, cannot be read, or cannot be downloaded.
    """
    if config.kwargs.get("in_chans") not in (None, _RGB):
        raise _not_rgb(config, config.kwargs["in_chans"])
    builder = BUILDERS[kind_of_name(config.model)]
    network = builder.build(config, num_classes, untrained=untrained)
    cfg: Any = network.pretrained_cfg
    override_input(cfg, config)
    channels = resolve_input_data_config(network)["input_size"][0]
    if channels != _RGB:
        raise _not_rgb(config, channels)
    _check_classes(network, config, num_classes, trained=config.is_trained and not untrained)
    return network


def input_spec(network: nn.Module, size: int | None = None) -> InputSpec:
    """Return the input of a network.

    Args:
        network: A network of :func:`build_network`.
        size: Side in pixels, for networks of any input size.

    Raises:
        UsageError: The network has another, fixed input size.
    """
    try:
        wanted = resolve_input_data_config(network, {"img_size": size} if size else {})
    except ValueError as error:
        raise UsageError(
            "the network does not accept images of this size",
            got=str(error),
            hint="leave out size, or build the model for another one: "
            f"kwargs: {{img_size: {size}}}",
        ) from None
    _, height, width = wanted["input_size"]
    if height != width:
        raise UsageError(
            "views are rendered as squares, but the input of the network is not square",
            got=f"{height} x {width} pixels",
            hint="set size",
        )
    return InputSpec(
        size=height,
        mean=tuple(wanted["mean"]),
        std=tuple(wanted["std"]),
        interpolation=wanted["interpolation"],
        crop_pct=wanted["crop_pct"],
        crop_mode=wanted["crop_mode"],
    )


def architecture(network: nn.Module, config: NetworkConfig) -> dict[str, Any]:
    """Return the settings in which networks with equal names and shapes of weights may differ."""
    kwargs = dict(config.kwargs)
    if config.model.startswith(LOCAL):
        exported = Path(config.model.removeprefix(LOCAL)) / "config.json"
        kwargs = {**json.loads(exported.read_text()).get("model_args", {}), **kwargs}
    cfg: Any = network.pretrained_cfg
    code = {CODE: cfg[CODE]} if CODE in cfg else {}
    return {"architecture": cfg["architecture"], "kwargs": kwargs, **code}


def is_own_model(architecture: str) -> bool:
    """Return whether a model is defined in this package instead of timm.

    Args:
        architecture: Its registered name.
    """
    return model_entrypoint(architecture).__module__.startswith("logitcache.")


def classifier_of(network: nn.Module) -> Any:
    """Return what timm's networks take for their classifier: a module, or several."""
    return network.get_classifier()  # type: ignore[operator]  # a module's attributes are untyped


def num_classes_of(network: nn.Module) -> int:
    """Return the number of outputs of a network's classifier, 0 without one."""
    return int(network.num_classes)  # type: ignore[arg-type]  # a module's attributes are untyped


def class_names_of(network: nn.Module) -> list[str] | None:
    """Return the names of a network's classes in order; None where they are not known.

    They are the ``label_names`` of an exported network, or the WordNet ids of ImageNet for timm's
    own weights.

    Args:
        network: A network of :func:`build_network`.
    """
    cfg: Any = network.pretrained_cfg
    classes = num_classes_of(network)
    names = cfg.get("label_names")
    if isinstance(names, dict):
        by_id = {str(index): name for index, name in names.items()}
        names = [by_id.get(str(index)) for index in range(len(by_id))]
    if names:
        known = len(names) == classes and all(isinstance(name, str) for name in names)
        return list(names) if known else None
    subset = infer_imagenet_subset(network)
    if subset is None or classes != cfg.get("num_classes") or not _are_from_timm(cfg):
        return None
    info: Any = ImageNetInfo(subset)
    imagenet: list[str] = info.label_names()
    return list(imagenet) if len(imagenet) == classes else None


def size_is_known(network: nn.Module, config: NetworkConfig) -> bool:
    """Return whether the input size of a network is that of its weights, or set by the user.

    A weights file does not contain the input size of its training, unless it has a position
    embedding; without one :func:`input_spec` returns the default of the model.

    Args:
        network: A network of :func:`build_network`.
        config: Its settings.
    """
    by_user = config.size or config.kwargs.get("img_size")
    if by_user is not None or not _is_bare_file(config) or form_of(config.model).own_weights:
        return True
    return isinstance(getattr(network, POSITIONS, None), Tensor)


def size_is_default(network: nn.Module, config: NetworkConfig) -> bool:
    """Return whether the input size of a network is the default of its model.

    It is then neither that of its weights nor set by the user: the weights are newly initialized,
    or from a file without the input size.

    Args:
        network: A network of :func:`build_network`.
        config: Its settings.
    """
    if config.size or config.kwargs.get("img_size") is not None:
        return False
    return not config.is_trained or not size_is_known(network, config)


def check_model_name(model: str) -> None:
    """Refuse a name that stands for no network.

    Args:
        model: As :attr:`NetworkConfig.model`.

    Raises:
        UsageError: An unknown name, with the nearest known ones.
    """
    BUILDERS[kind_of_name(model)].check(model)


def _check_classes(
    network: nn.Module, config: NetworkConfig, num_classes: int | None, *, trained: bool
) -> None:
    """Refuse a network without the required outputs.

    Raises:
        UsageError: The teacher has no classes, or a classifier that is not from its weights; or the
            model has no classifier of the required size.
    """
    classes = getattr(network, "num_classes", 0)
    if num_classes is not None and classes != num_classes:
        raise UsageError(
            "the model has no classifier of the required size",
            where=config.model,
            expected=f"{num_classes} classes",
            got=classes,
        )
    if num_classes is not None:
        return
    if not classes:
        raise UsageError(
            "the network has no classes, so it has no logits to cache",
            where=config.model,
            hint="to cache its features alone, set head: none (--set teachers.NAME.head=none "
            "--feature NAME=pre_logits); otherwise leave out num_classes: 0, or give weights with "
            "a classifier",
        )
    cfg: Any = network.pretrained_cfg
    if trained and not _is_bare_file(config) and classes != cfg.get("num_classes", classes):
        raise UsageError(
            "the weights have another number of classes than kwargs.num_classes",
            where=config.model,
            expected=cfg["num_classes"],
            got=classes,
            hint="leave out num_classes: a teacher needs the classifier that it was trained with",
        )


def _is_bare_file(config: NetworkConfig) -> bool:
    """Whether the weights are a file without a configuration next to them."""
    return config.weights not in (None, PRETRAINED)


def _are_from_timm(cfg: dict[str, Any]) -> bool:
    """Whether the weights of a configuration are published by timm itself."""
    repository = str(cfg.get("hf_hub_id") or "")
    if cfg.get("source") == "hf-hub":
        return repository.startswith("timm/")
    return cfg.get("source") is None and bool(repository or cfg.get("url"))


def _not_rgb(config: NetworkConfig, channels: object) -> UsageError:
    return UsageError(
        "views are RGB images, but the input of the network is not",
        where=config.model,
        expected="a network with 3 input channels",
        got=f"{channels} input channels",
        hint="leave out in_chans",
    )
