"""Export of a network as a folder that timm loads with ``local-dir:``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
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

    ``timm.create_model("local-dir:<folder>", pretrained=True)`` loads the network; models of this
    package need ``import logitcache`` before, which registers them.

    Args:
        network: A network of timm or of :mod:`logitcache.networks`.
        spec: Input size and normalization; written as the data configuration.
        folder: Folder of the export; created if it does not exist.
        class_names: Names of the outputs in order, if known; ``label_names`` in timm.
    """
    # pretrained weights may have come with the names of other classes, which timm would write
    cleared = {"label_names": None, "label_descriptions": None}
    network.to(memory_format=torch.contiguous_format)  # safetensors has no other format
    with written_together(folder) as partial:
        save_for_hf(
            network,
            str(partial),
            model_config={"label_names": list(class_names or ()), "pretrained_cfg": cleared},
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
        # written again with metadata: Transformers refuses files without the tensors' library
        save_file(network.state_dict(), partial / _WEIGHTS, metadata={"format": "pt"})
