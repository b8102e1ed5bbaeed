"""Networks of timm: by name, from an exported folder, or from the Hugging Face Hub.

Nothing here downloads unless the user writes ``weights: pretrained`` or an ``hf-hub:`` name.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import timm
from safetensors import SafetensorError
from timm.models import model_entrypoint

from logitcache.errors import NetworkError, UsageError, nearest
from logitcache.networks import adapter, branches, civt, rednet
from logitcache.networks.config import PRETRAINED
from logitcache.networks.forms import FORMS, HUB, LOCAL
from logitcache.networks.from_file import network_from_file
from logitcache.networks.weights_file import short_text

if TYPE_CHECKING:
    from torch import nn

    from logitcache.networks.config import NetworkConfig

__all__ = ["build_from_timm", "check_timm_name", "unfetched"]

OWN_MODELS = (adapter, branches, civt, rednet)
"""Modules whose import registers models with timm."""


def check_timm_name(model: str) -> None:
    """Refuse a name that timm does not know.

    Raises:
        UsageError: An unknown name, with the nearest known ones.
    """
    if model.startswith((LOCAL, HUB)):
        return
    name = model.partition(".")[0]
    if model.lower().endswith(".onnx"):
        raise UsageError(
            "ONNX files are not run",
            where=model,
            expected="a program of torch.export (.pt2) or TorchScript (.torchscript)",
            hint="export the network again where its code is: torch.export.save(program, 'x.pt2')",
        )
    if not timm.is_model(name):
        others = ", ".join(form.notation for key, form in FORMS.items() if key != "timm")
        raise UsageError(
            f"unknown model {model!r}",
            hint=f"{nearest(name, timm.list_models())} "
            f"(timm.list_models() lists all of them; other forms are {others})",
        )


def build_from_timm(
    config: NetworkConfig, num_classes: int | None, *, untrained: bool = False
) -> nn.Module:
    """Build a network of timm; see :func:`logitcache.networks.build.build_network`."""
    kwargs = dict(config.kwargs)
    if num_classes is not None:
        kwargs["num_classes"] = num_classes
    if config.model.startswith((LOCAL, HUB)):
        if config.weights not in (None, PRETRAINED):
            raise UsageError(
                "an exported network has weights of its own",
                where=f"{config.model}@{config.weights}",
                hint="leave out the weights file, or give the architecture instead of the folder",
            )
        return _create(config, pretrained=not untrained, **kwargs)
    check_timm_name(config.model)
    if config.weights == PRETRAINED and not untrained:
        return _create(config, pretrained=True, **kwargs)
    if config.weights is None or untrained:
        network = _create(config, **kwargs)
    else:
        path = Path(config.weights).expanduser()
        network = network_from_file(
            path,
            config.model,
            config.kwargs,
            num_classes,
            partial(_create, config),
            module=model_entrypoint(config.model).__module__,
        )
    # these are not timm's weights of this name, so the metadata of those must not be used
    cfg: Any = network.pretrained_cfg
    for key in ("url", "hf_hub_id", "hf_hub_filename", "source", "tag", "label_names"):
        cfg.pop(key, None)
    return network


def unfetched(config: NetworkConfig, error: OSError) -> NetworkError:
    """Return the error for published weights that cannot be downloaded."""
    return NetworkError(
        "the weights cannot be downloaded",
        where=config.model if config.weights is None else f"{config.model}@{config.weights}",
        expected="a connection to the Hugging Face Hub, or the weights in its local cache",
        got=str(error).partition("\n")[0],
        hint="give a weights file, as MODEL@FILE, or a folder, as local-dir:FOLDER",
    )


def _create(config: NetworkConfig, **kwargs: Any) -> nn.Module:
    """Create a network by timm, and convert its errors."""
    try:
        network: nn.Module = timm.create_model(config.model, **kwargs)
    except FileNotFoundError as error:
        if not config.model.startswith(LOCAL):  # the hub's client reports that it is offline
            raise unfetched(config, error) from error
        raise NetworkError(
            "the folder contains no exported network",
            where=config.model,
            expected="a folder with config.json and model.safetensors",
            got=error,
            hint="check the path; logitcache train exports to the folder 'export' of its --out",
        ) from None
    except OSError as error:
        raise unfetched(config, error) from error
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
