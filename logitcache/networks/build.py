"""Networks by name: timm's, the RedNets registered here, exported folders, weights files.

A teacher and a student are built by the same function. Nothing here downloads unless the user
writes ``weights: pretrained`` or an ``hf-hub:`` name.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
from pydantic import Field
from timm.data.model_config import resolve_input_data_config
from timm.models import load_state_dict

from logitcache.config import Config
from logitcache.errors import NetworkError, UsageError, nearest
from logitcache.networks import civt, rednet

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "InputSpec",
    "NetworkConfig",
    "architecture",
    "build_network",
    "check_model_name",
    "input_spec",
]

OWN_MODELS = (civt, rednet)
"""Modules whose import registers models with timm."""

PRETRAINED = "pretrained"
_LOCAL = "local-dir:"
_HUB = "hf-hub:"


class NetworkConfig(Config):
    """Which network.

    Attributes:
        model: A timm name (``resnet50``, ``rednet50``), ``local-dir:<folder>`` as timm exports it,
            or ``hf-hub:<repository>``.
        weights: A ``.safetensors`` or ``.pth`` file, ``pretrained`` for timm's own, or nothing for
            fresh weights. ``local-dir:`` and ``hf-hub:`` bring theirs.
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
        return self.weights is not None or self.model.startswith((_LOCAL, _HUB))


@dataclass(frozen=True)
class InputSpec:
    """What a network wants to be fed.

    Attributes:
        size: Side of the square input in pixels.
        mean: Per channel, in units of [0, 1].
        std: Per channel, in units of [0, 1].
        interpolation: What it was trained with; views choose their own.
        crop_pct: Share of the shorter side it was evaluated with.
        crop_mode: How it was cropped then: ``center``, ``squash`` or ``border``.
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
        config: Which one.
        num_classes: Size of the head; by default what the weights have, else what timm has.
        untrained: Whether its weights are fresh ones, whatever the configuration says.

    Raises:
        UsageError: An unknown name, with the nearest known ones.
        NetworkError: The weights do not fit, cannot be read, or cannot be fetched.
    """
    kwargs = dict(config.kwargs)
    if num_classes is not None:
        kwargs["num_classes"] = num_classes
    if config.model.startswith((_LOCAL, _HUB)):
        return _create(config, pretrained=not untrained, **kwargs)
    check_model_name(config.model)
    if config.weights is None or untrained:
        return _create(config, **kwargs)
    if config.weights == PRETRAINED:
        return _create(config, pretrained=True, **kwargs)
    return _build_from_file(config, Path(config.weights).expanduser(), kwargs)


def input_spec(network: nn.Module, size: int | None = None) -> InputSpec:
    """Return what a network wants to be fed.

    Args:
        network: A network made by :func:`build_network`.
        size: Side in pixels, for networks that take any.

    Raises:
        UsageError: The network takes one size only, and not this one.
    """
    try:
        wanted = resolve_input_data_config(network, {"img_size": size} if size else {})
    except ValueError as error:
        raise UsageError(
            "this network does not take images of this size",
            got=str(error),
            hint="leave size at the model's own, or build the model for another: "
            f"kwargs: {{img_size: {size}}}",
        ) from None
    _, height, width = wanted["input_size"]
    if height != width:
        raise UsageError(
            "only square inputs are rendered", got=f"{height} x {width}", hint="set size"
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
    """Return what tells two networks apart whose weights have the same names and shapes."""
    kwargs = dict(config.kwargs)
    if config.model.startswith(_LOCAL):
        exported = Path(config.model.removeprefix(_LOCAL)) / "config.json"
        kwargs = {**json.loads(exported.read_text()).get("model_args", {}), **kwargs}
    cfg: Any = network.pretrained_cfg
    return {"architecture": cfg["architecture"], "kwargs": kwargs}


def check_model_name(model: str) -> None:
    """Refuse a name that timm does not know.

    Args:
        model: As :attr:`NetworkConfig.model`.

    Raises:
        UsageError: An unknown name, with the nearest known ones.
    """
    if model.startswith((_LOCAL, _HUB)):
        return
    name = model.partition(".")[0]
    if not timm.is_model(name):
        raise UsageError(
            f"unknown model {model!r}",
            hint=f"{nearest(name, timm.list_models())} "
            "(timm.list_models() has them all; folders are written local-dir:<folder>)",
        )


def _create(config: NetworkConfig, **kwargs: Any) -> nn.Module:
    """Call timm, and explain what it says."""
    try:
        network: nn.Module = timm.create_model(config.model, **kwargs)
    except FileNotFoundError as error:
        if not config.model.startswith(_LOCAL):  # the hub's client says so when it is offline
            raise _unfetched(config, error) from error
        raise NetworkError(
            "no exported network here",
            where=config.model,
            expected="a folder with config.json and model.safetensors",
            got=error,
            hint="check the path; what logitcache trains is in the folder 'export' of its --out",
        ) from None
    except (TypeError, ValueError, AssertionError, IndexError) as error:
        raise NetworkError(
            "timm cannot build this model", where=config.model, got=f"{kwargs}: {error}"
        ) from error
    except OSError as error:
        raise _unfetched(config, error) from error
    except RuntimeError as error:
        raise NetworkError(
            "the weights do not fit this model", where=config.model, got=_short(error)
        ) from error
    return network


def _unfetched(config: NetworkConfig, error: OSError) -> NetworkError:
    return NetworkError(
        "the weights cannot be fetched",
        where=config.model if config.weights is None else f"{config.model}@{config.weights}",
        expected="a connection to the Hugging Face hub, or its weights in the hub's own cache",
        got=str(error).partition("\n")[0],
        hint="give a weights file, as MODEL@FILE, or a folder, as local-dir:FOLDER",
    )


def _build_from_file(config: NetworkConfig, path: Path, kwargs: dict[str, Any]) -> nn.Module:
    """Build a network around a weights file; its head takes the size the file has."""
    state_dict = _read_weights(path)
    if config.model.startswith("rednet"):
        state_dict = rednet.checkpoint_filter_fn(state_dict)
        stem_kernel = rednet.stem_kernel_of(state_dict)
        if stem_kernel is not None:
            kwargs.setdefault("stem_kernel", stem_kernel)
    head = timm.get_pretrained_cfg_value(config.model, "classifier")
    if isinstance(head, str) and f"{head}.weight" in state_dict:
        kwargs.setdefault("num_classes", state_dict[f"{head}.weight"].shape[0])
    overlay = {
        "state_dict": state_dict,
        "num_classes": kwargs.get("num_classes"),
        "custom_load": False,
    }
    network = _create(config, pretrained=True, pretrained_cfg_overlay=overlay, **kwargs)
    network.pretrained_cfg.pop("state_dict", None)  # type: ignore[union-attr, operator]  # a dict
    return network


def _read_weights(path: Path) -> dict[str, Tensor]:
    """Read tensors and nothing else: a pickle that holds code is refused."""
    if not path.is_file():
        raise NetworkError(
            "no such weights file", where=path, hint="check the path after the model's @"
        )
    try:
        state_dict: dict[str, Tensor] = load_state_dict(str(path), weights_only=True)
    except Exception as error:  # safetensors, torch and timm raise a kind each for damaged files
        if "weights_only" in str(error):
            raise NetworkError(
                "this file holds more than tensors and is not opened",
                where=path,
                hint="save the state dict alone, or as .safetensors",
            ) from None
        raise NetworkError("cannot read these weights", where=path, got=_short(error)) from error
    return state_dict


def _short(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return "; ".join(lines[:3])[:300]
