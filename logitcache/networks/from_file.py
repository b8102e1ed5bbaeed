"""Networks built from a weights file.

Arguments of the model are inferred from the shapes in the file where possible: the number of
classes, the image size of a vision transformer, and those that the module of the model can infer.
"""

from __future__ import annotations

import logging
import math
import sys
from typing import TYPE_CHECKING, Any

import torch
from timm.data.model_config import resolve_input_data_config

from logitcache.errors import NetworkError
from logitcache.networks.published_layouts import TRANSLATIONS
from logitcache.networks.weights import (
    COUNTERS,
    MANY_CLASSES,
    Layout,
    filters_of,
    fit_weights,
    listed,
    named_root,
)
from logitcache.networks.weights_file import read_checkpoint, shown
from logitcache.text import visible

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from types import ModuleType

    from torch import Tensor, nn

    from logitcache.networks.weights import FittedWeights

__all__ = ["POSITIONS", "network_from_file"]

POSITIONS = "pos_embed"
"""Name of the position embedding of timm's vision transformers."""

_LOG = logging.getLogger(__name__)


def network_from_file(
    path: Path,
    model: str,
    kwargs: Mapping[str, Any],
    num_classes: int | None,
    create: Callable[..., nn.Module],
    *,
    module: str | None = None,
    headless: bool = False,
) -> nn.Module:
    """Build a network with the weights of a file.

    Args:
        path: The file.
        model: Name of the model in timm.
        kwargs: Arguments of the model that the user sets.
        num_classes: Number of classes; the classifier is newly initialized where the file has
            another number or none. 0 for no classifier, None for that of the file.
        create: Function that builds the model from arguments, with newly initialized weights.
        module: Name of the module of timm that defines the model; None for other models.
        headless: Whether the classifier stays newly initialized, because it is not used.

    Raises:
        NetworkError: The file cannot be read, or does not fit.
    """
    checkpoint = read_checkpoint(path)
    defined_in = None if module is None else sys.modules[module]
    wanted = {name: value for name, value in kwargs.items() if value is not None}
    resample = "img_size" in wanted
    layout = _layout(create, wanted)
    implied = _implied_kwargs(named_root(checkpoint, layout), layout, defined_in)
    if not implied.keys() <= wanted.keys():
        wanted = {**implied, **wanted}
        layout = _layout(create, wanted)
    filters = [*([] if defined_in is None else filters_of(defined_in)), *TRANSLATIONS]
    fitted = fit_weights(checkpoint, layout, filters, resample=resample)
    if headless:
        network = create(**wanted)
        _load(network, fitted.body, layout, model)
        return network
    if num_classes is None:
        num_classes = _classes_of_file(path, layout, fitted, wanted.get("num_classes"))
    network = create(**{**wanted, "num_classes": num_classes})
    head = fitted.head if fitted.num_classes == num_classes else {}
    _load(network, {**fitted.body, **head}, layout, model)
    _log_differences(path, fitted, fresh=None if head or not num_classes else num_classes)
    return network


def _layout(create: Callable[..., nn.Module], kwargs: Mapping[str, Any]) -> Layout:
    """Return the names and shapes of a network, without memory for its weights."""
    with torch.device("meta"):
        return Layout.of(create(**{**kwargs, "num_classes": MANY_CLASSES}))


def _load(network: nn.Module, tensors: dict[str, Tensor], layout: Layout, model: str) -> None:
    """Load tensors into a network; only the classifier may stay newly initialized."""
    result = network.load_state_dict(tensors, strict=False)
    fresh = [
        name
        for name in result.missing_keys
        if name not in layout.head and not name.endswith(COUNTERS)
    ]
    # the layout is that of another number of classes, on which no layer may depend
    if fresh or result.unexpected_keys:
        raise NetworkError(
            "the layers of the model depend on the number of classes",
            where=model,
            expected=fresh[:5],
            got=result.unexpected_keys[:5],
            hint="leave out num_classes",
        )


def _log_differences(path: Path, fitted: FittedWeights, *, fresh: int | None) -> None:
    """Log the unused tensors of a file, and the size of a newly initialized classifier."""
    if fitted.outside:
        left = f"{len(fitted.outside)} tensors outside of {shown(fitted.prefix)!r} are not used"
        _LOG.info("%s: %s: %s", path, left, visible(listed(fitted.outside)))
    if fresh is not None:
        _LOG.info("%s: the classifier of %d classes is newly initialized", path, fresh)


def _implied_kwargs(
    tensors: dict[str, Tensor], layout: Layout, module: ModuleType | None
) -> dict[str, Any]:
    """Return the arguments of a model that follow from the shapes of its weights.

    Args:
        tensors: Tensors of a file, by the names of the network.
        layout: Layout of the model with default arguments.
        module: Module of the model. Its function ``kwargs_from_weights``, if it has one, infers
            arguments from such tensors.
    """
    own: Callable[[dict[str, Tensor]], dict[str, Any]] | None
    own = getattr(module, "kwargs_from_weights", None)
    implied = {} if own is None else own(tensors)
    size = _size_of_positions(tensors, layout)
    return implied if size is None else {**implied, "img_size": size}


def _size_of_positions(tensors: dict[str, Tensor], layout: Layout) -> int | None:
    """Return the image size in pixels of a file's position embedding.

    None where the file or the model has none, where it is the default of the model, or where the
    patches do not form a square.
    """
    file, own = tensors.get(POSITIONS), layout.body.get(POSITIONS)
    if file is None or own is None or file.ndim != 3 or own.ndim != 3 or file.shape == own.shape:
        return None
    network: Any = layout.network
    without = getattr(network, "no_embed_class", False)
    prefix = 0 if without else getattr(network, "num_prefix_tokens", 1)
    default: int = resolve_input_data_config(network)["input_size"][-1]
    side, own_side = _side(file, prefix), _side(own, prefix)
    if side is None or own_side is None or default % own_side:
        return None
    return side * (default // own_side)


def _side(positions: Tensor, prefix: int) -> int | None:
    """Return the number of patches along the side of a square image; None for other images."""
    patches = positions.shape[1] - prefix
    side = math.isqrt(max(0, patches))
    return side if side and side * side == patches else None


def _classes_of_file(path: Path, layout: Layout, fitted: FittedWeights, wanted: int | None) -> int:
    """Return the number of classes of a file's classifier.

    Args:
        path: The file.
        layout: The network.
        fitted: Tensors of the file that fit the network.
        wanted: Number of classes that the user sets.

    Raises:
        NetworkError: The file has no classifier of this kind, or another number of classes.
    """
    if fitted.num_classes is None:
        raise NetworkError(
            "the file has no classifier of the network, so it cannot be a teacher",
            where=path,
            expected=", ".join(layout.head) or "a model with a classifier",
            got=listed({**fitted.strays, **fitted.outside}) or "a backbone only",
            hint="save the whole network with its classifier under timm's names; "
            "a student needs no classifier in the file, since it gets a new one; "
            "head: none caches the features of a backbone",
        )
    if wanted not in (None, fitted.num_classes):
        raise NetworkError(
            "the file has another number of classes than kwargs.num_classes",
            where=path,
            expected=wanted,
            got=fitted.num_classes,
            hint="leave out num_classes: it follows from the file",
        )
    return fitted.num_classes
