"""Classification networks of torchvision: ``torchvision/NAME``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torchvision
from timm.data import ImageNetInfo
from torch import nn

from logitcache.errors import NetworkError, UsageError, nearest
from logitcache.networks.config import PRETRAINED
from logitcache.networks.forms import TORCHVISION
from logitcache.networks.from_file import network_from_file
from logitcache.networks.timm_attributes import adopt
from logitcache.networks.timm_models import unfetched
from logitcache.networks.weights_file import short_text

if TYPE_CHECKING:
    from enum import EnumMeta

    from logitcache.networks.config import NetworkConfig

__all__ = ["build_from_torchvision", "check_torchvision_name"]


def check_torchvision_name(model: str) -> None:
    """Refuse a name that is no classification network of torchvision.

    Raises:
        UsageError: An unknown name, with the nearest known ones.
    """
    name = model.removeprefix(TORCHVISION)
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise UsageError(
            f"torchvision has no classification network {name!r}",
            where=model,
            hint=f"{nearest(name, known)} "
            "(torchvision.models.list_models(module=torchvision.models) lists all of them)",
        )


def build_from_torchvision(
    config: NetworkConfig, num_classes: int | None, *, untrained: bool = False
) -> nn.Module:
    """Build a network of torchvision; see :func:`logitcache.networks.build.build_network`.

    Without classes, its classifier is replaced by an identity, as timm does.
    """
    check_torchvision_name(config.model)
    published: Any = torchvision.models.get_model_weights(_name(config))
    chosen = None if untrained else _chosen(config, published)
    trained = config.weights is not None and not untrained
    if chosen is not None:
        network = _create(config, weights=chosen)
    elif trained:
        network = network_from_file(
            Path(str(config.weights)).expanduser(),
            config.model,
            config.kwargs,
            None,
            partial(_create, config),
            headless=num_classes == 0,
        )
    else:
        network = _create(config)
    if num_classes == 0:
        _remove_classifier(network)
    own = _preset(chosen or published.DEFAULT)
    if chosen is not None:
        own["label_names"] = _class_names(chosen)
    return adopt(network, config, own, num_classes=num_classes)


def _name(config: NetworkConfig) -> str:
    return config.model.removeprefix(TORCHVISION)


def _chosen(config: NetworkConfig, published: EnumMeta) -> Any:
    """Return the published weights that the user chose; None for a file, or without weights."""
    if config.weights == PRETRAINED:
        return published["DEFAULT"]
    return published.__members__.get(str(config.weights))


def _create(config: NetworkConfig, **kwargs: Any) -> nn.Module:
    """Create a network by torchvision, and convert its errors."""
    wanted = {**config.kwargs, **kwargs}
    weights = wanted.pop("weights", None)
    try:
        network: nn.Module = torchvision.models.get_model(_name(config), weights=weights, **wanted)
    except OSError as error:  # also that of urllib
        raise unfetched(config, error) from error
    except (ArithmeticError, AssertionError, LookupError, TypeError, ValueError) as error:
        raise _unbuildable(config, error) from error
    except RuntimeError as error:
        if weights is None:
            raise _unbuildable(config, error) from error
        raise NetworkError(
            "the weights cannot be read, or do not fit the model",
            where=f"{config.model}@{config.weights}",
            got=short_text(error),
            hint="remove the file from the cache of torch.hub, so that it is downloaded again",
        ) from error
    return network


def _unbuildable(config: NetworkConfig, error: Exception) -> NetworkError:
    return NetworkError(
        "torchvision cannot build the model",
        where=config.model,
        got=f"{config.kwargs}: {short_text(error) or type(error).__name__}",
        hint="check kwargs",
    )


def _remove_classifier(network: nn.Module) -> None:
    """Replace the classifier, the last linear layer of a network, by an identity, in place."""
    layers = [n for n, m in network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    network.set_submodule(layers[-1], nn.Identity())
    attributes: Any = network
    attributes.get_classifier = partial(network.get_submodule, layers[-1])


def _preset(weights: Any) -> dict[str, Any]:
    """Return the input of published weights in the form of timm's ``pretrained_cfg``."""
    preset = weights.transforms()
    crop, resize = preset.crop_size[0], preset.resize_size[0]
    return {
        "input_size": (3, crop, crop),
        "mean": tuple(preset.mean),
        "std": tuple(preset.std),
        "interpolation": preset.interpolation.value,
        "crop_pct": crop / resize,
        "crop_mode": "center",
    }


def _class_names(weights: Any) -> list[str] | None:
    """Return the WordNet ids of ImageNet's classes, by which images are usually labeled."""
    info: Any = ImageNetInfo("imagenet-1k")
    names: list[str] = info.label_names()
    return names if len(weights.meta["categories"]) == len(names) else None
