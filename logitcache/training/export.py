"""Export of a network as a folder that timm loads with ``local-dir:``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from safetensors.torch import save_file
from timm.models import save_for_hf

from logitcache.files import written_together

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import nn

    from logitcache.networks.build import InputSpec

__all__ = ["export_network"]

_WEIGHTS = "model.safetensors"


def export_network(
    network: nn.Module, spec: InputSpec, folder: Path, class_names: Sequence[str] | None = None
) -> None:
    """Write ``config.json`` and ``model.safetensors``.

    ``timm.create_model("local-dir:<folder>", pretrained=True)`` opens it; for one of our own models
    ``import logitcache`` first, which registers them.

    Args:
        network: A network made by timm or by :mod:`logitcache.networks`.
        spec: What it was fed; becomes its data configuration.
        folder: Where to; created if need be.
        class_names: Names of its outputs in order, if they are known; ``label_names`` in timm.
    """
    # what the network was built from may have named other classes
    forgotten = {"label_names": None, "label_descriptions": None}
    with written_together(folder) as partial:
        save_for_hf(
            network,
            str(partial),
            model_config={"label_names": list(class_names or ()), "pretrained_cfg": forgotten},
            safe_serialization=True,
            data_config={
                "input_size": (len(spec.mean), spec.size, spec.size),
                "mean": spec.mean,
                "std": spec.std,
                "interpolation": spec.interpolation,
                "crop_pct": spec.crop_pct,
                "crop_mode": spec.crop_mode,
            },
        )
        # Transformers and Diffusers refuse files that do not name the library of their tensors
        save_file(network.state_dict(), partial / _WEIGHTS, metadata={"format": "pt"})
