"""Networks by name: timm models, exported folders, weights files.

A teacher and a student are built by the same function. Nothing here downloads unless the user
writes ``weights: pretrained`` or an ``hf-hub:`` name.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import timm
from pydantic import Field
from safetensors import SafetensorError
from timm.data import ImageNetInfo, infer_imagenet_subset
from timm.data.model_config import resolve_input_data_config
from timm.models import model_entrypoint
from torch import Tensor

from logitcache.config import Config
from logitcache.errors import NetworkError, UsageError, nearest
from logitcache.networks import civt, rednet
from logitcache.networks.from_file import POSITIONS, network_from_file
from logitcache.networks.weights_file import short_text

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "HUB",
    "InputSpec",
    "NetworkConfig",
    "architecture",
    "build_network",
    "check_model_name",
    "class_names_of",
    "input_spec",
    "is_own_model",
    "size_is_default",
    "size_is_known",
]

OWN_MODELS = (civt, rednet)
"""Modules whose import registers models with timm."""

PRETRAINED = "pretrained"
_LOCAL = "local-dir:"
HUB = "hf-hub:"
"""Prefix of a model in a repository of the Hugging Face Hub."""
_RGB = 3


class NetworkConfig(Config):
    """Settings of a network.

    Attributes:
        model: A timm name (``resnet50``, ``rednet50``), ``local-dir:<folder>`` as timm exports it,
            or ``hf-hub:<repository>``.
        weights: A weights file (``.safetensors``, ``.pth``, ``.pt``, ``.bin`` or ``.ckpt``,
            recognized by its content); ``pretrained`` for the weights that timm publishes; or
            nothing for randomly initialized weights. ``local-dir:`` and ``hf-hub:`` models have
            weights of their own.
        kwargs: Further arguments of the model, as for ``timm.create_model``.
        size: Side of the square input in pixels; the model's own by default.
    """

    model: str
    weights: str | None = None
    kwargs: dict[str, Any] = Field(default_factory=dict)
    size: int | None = Field(default=None, gt=0)

    @property
    def is_trained(self) -> bool:
        """Whether the network comes with weights."""
        return self.weights is not None or self.model.startswith((_LOCAL, HUB))


@dataclass(frozen=True)
class InputSpec:
    """Input of a network.

    Attributes:
        size: Side of the square input in pixels.
        mean: Mean of each channel, for pixels in [0, 1].
        std: Standard deviation of each channel, for pixels in [0, 1].
        interpolation: Interpolation of its training; views have their own.
        crop_pct: Share of the shorter side in its evaluation.
        crop_mode: Crop of its evaluation: ``center``, ``squash`` or ``border``.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float
    crop_mode: str = "center"

    def to_json(self) -> dict[str, Any]:
        """Return the specification as JSON values."""
        return {n: list(v) if isinstance(v, tuple) else v for n, v in asdict(self).items()}


def build_network(
    config: NetworkConfig, num_classes: int | None = None, *, untrained: bool = False
) -> nn.Module:
    """Build a network in float32 on the CPU.

    Args:
        config: Settings.
        num_classes: Number of classes of a student: where the weights have another number, or no
            classifier, it is newly initialized. By default, for a teacher, the classifier is that
            of the weights, or else timm's.
        untrained: Whether to ignore the configured weights and initialize new ones.

    Raises:
        UsageError: The name is unknown (the message has the nearest known ones), the input is not
            RGB, or there are no classes.
        NetworkError: The weights do not fit, cannot be read, or cannot be downloaded.
    """
    if config.kwargs.get("in_chans") not in (None, _RGB):
        raise _not_rgb(config, config.kwargs["in_chans"])
    network = _build(config, num_classes, untrained=untrained)
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
    if config.model.startswith(_LOCAL):
        exported = Path(config.model.removeprefix(_LOCAL)) / "config.json"
        kwargs = {**json.loads(exported.read_text()).get("model_args", {}), **kwargs}
    cfg: Any = network.pretrained_cfg
    return {"architecture": cfg["architecture"], "kwargs": kwargs}


def is_own_model(architecture: str) -> bool:
    """Return whether a model is defined in this package instead of timm.

    Args:
        architecture: Its registered name.
    """
    return model_entrypoint(architecture).__module__.startswith("logitcache.")


def class_names_of(network: nn.Module) -> list[str] | None:
    """Return the names of a network's classes in order; None where they are not known.

    They are the ``label_names`` of an exported network, or the WordNet ids of ImageNet for timm's
    own weights.

    Args:
        network: A network of :func:`build_network`.
    """
    cfg: Any = network.pretrained_cfg
    classes = int(network.num_classes)  # type: ignore[arg-type]  # a module's attributes are untyped
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
    if by_user is not None or not _is_bare_file(config):
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
    """Refuse a name that timm does not know.

    Args:
        model: As :attr:`NetworkConfig.model`.

    Raises:
        UsageError: An unknown name, with the nearest known ones.
    """
    if model.startswith((_LOCAL, HUB)):
        return
    name = model.partition(".")[0]
    if not timm.is_model(name):
        raise UsageError(
            f"unknown model {model!r}",
            hint=f"{nearest(name, timm.list_models())} "
            "(timm.list_models() lists all of them; a folder is local-dir:<folder>)",
        )


def _create(config: NetworkConfig, **kwargs: Any) -> nn.Module:
    """Create a network by timm, and convert its errors."""
    try:
        network: nn.Module = timm.create_model(config.model, **kwargs)
    except FileNotFoundError as error:
        if not config.model.startswith(_LOCAL):  # the hub's client reports that it is offline
            raise _unfetched(config, error) from error
        raise NetworkError(
            "the folder contains no exported network",
            where=config.model,
            expected="a folder with config.json and model.safetensors",
            got=error,
            hint="check the path; logitcache train exports to the folder 'export' of its --out",
        ) from None
    except OSError as error:
        raise _unfetched(config, error) from error
    except (SafetensorError, UnpicklingError) as error:
        raise NetworkError(
            "the weights cannot be read", where=config.model, got=short_text(error)
        ) from error
    except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError) as error:
        raise _unbuildable(config, error) from error
    except (RuntimeError, ValueError) as error:
        # Loading weights raises the first kind, but so do layers of impossible sizes.
        if not kwargs.get("pretrained") or "loading state_dict" not in str(error):
            raise _unbuildable(config, error) from error
        raise NetworkError(
            "the weights do not fit the model", where=config.model, got=short_text(error)
        ) from error
    return network


def _unbuildable(config: NetworkConfig, error: Exception) -> NetworkError:
    return NetworkError(
        "timm cannot build the model",
        where=config.model,
        got=f"{config.kwargs}: {short_text(error) or type(error).__name__}",
        hint="check kwargs; a model of another package has to be imported first",
    )


def _unfetched(config: NetworkConfig, error: OSError) -> NetworkError:
    return NetworkError(
        "the weights cannot be downloaded",
        where=config.model if config.weights is None else f"{config.model}@{config.weights}",
        expected="a connection to the Hugging Face Hub, or the weights in its local cache",
        got=str(error).partition("\n")[0],
        hint="give a weights file, as MODEL@FILE, or a folder, as local-dir:FOLDER",
    )


def _build(config: NetworkConfig, num_classes: int | None, *, untrained: bool) -> nn.Module:
    kwargs = dict(config.kwargs)
    if num_classes is not None:
        kwargs["num_classes"] = num_classes
    if config.model.startswith((_LOCAL, HUB)):
        if config.weights not in (None, PRETRAINED):
            raise UsageError(
                "an exported network has weights of its own",
                where=f"{config.model}@{config.weights}",
                hint="leave out the weights file, or give the architecture instead of the folder",
            )
        return _create(config, pretrained=not untrained, **kwargs)
    check_model_name(config.model)
    if config.weights == PRETRAINED and not untrained:
        return _create(config, pretrained=True, **kwargs)
    if config.weights is None or untrained:
        network = _create(config, **kwargs)
    else:
        path = Path(config.weights).expanduser()
        create = partial(_create, config)
        network = network_from_file(path, config.model, config.kwargs, num_classes, create)
    # these are not timm's weights of this name, so the metadata of those must not be used
    cfg: Any = network.pretrained_cfg
    for key in ("url", "hf_hub_id", "hf_hub_filename", "source", "tag", "label_names"):
        cfg.pop(key, None)
    return network


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
            hint="leave out num_classes: 0, or give weights with a classifier",
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
