"""Full-scale pipelines on a few images, for two steps, with randomly initialized teachers."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from logitcache.networks.build import NetworkConfig, build_network
from logitcache.pipeline.config import PipelineConfig
from logitcache.pipeline.run import Pipeline
from logitcache.pipeline.settings import find_pipeline, read_yaml, shipped_pipelines
from tests.conftest import write_images

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

FULL = [name for name in shipped_pipelines() if name.startswith("full/")]
CLASSES = tuple(f"class{number:02d}" for number in range(12))
BATCH, STEPS, VIEWS, TOP_K, LABELS, VALIDATED = 4, 2, 1, 5, 16, 8


def few_images(name: str, folder: Path, per_class: int = 2) -> Pipeline:
    """Return a full-scale pipeline with its networks and sizes, and little to do.

    Args:
        name: Name of the pipeline, such as ``full/nkd``.
        folder: Folder for images, weights of the teachers, and outputs.
        per_class: Number of images of each of twelve classes.
    """
    images = write_images(folder / "images", per_class, CLASSES)
    values = copy.deepcopy(read_yaml(find_pipeline(name)))
    listed = {_mapping(values[key])["name"] for key in ("data", "val")} | {
        *values.get("data_sets", {})
    }
    for key in ("data", "stages"):
        values[key] = _renamed(values[key], dict.fromkeys(listed, str(images)))
    values["val"] = {"name": str(images), "limit": VALIDATED}
    values["train"].pop("epochs", None)
    values["train"] |= {"batch_size": BATCH, "steps": STEPS, "threads": 1, "device": "cpu"}
    values["train"] |= {"accumulate": 2} if "accumulate" in values["train"] else {}
    known = values.pop("networks", {})
    for entry in values["stages"]:
        for stage in entry.get("stages", [entry]):  # a block that is repeated has stages
            _shrink(stage, folder, known)
    config = PipelineConfig.parse(values, name)
    return Pipeline(config, out=str(folder / "out"))


def _mapping(data: str | Mapping[str, Any]) -> dict[str, Any]:
    return {"name": data} if isinstance(data, str) else dict(data)


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    """Return settings of stages with other names of image sets."""
    if isinstance(value, dict):
        return {key: _renamed(inner, names) for key, inner in value.items()}
    if isinstance(value, list):
        return [_renamed(inner, names) for inner in value]
    return names.get(value, value) if isinstance(value, str) else value


def _shrink(stage: dict[str, Any], folder: Path, known: Mapping[str, Any]) -> None:
    """Change the settings of a stage, in place.

    Args:
        stage: The stage.
        folder: Folder for weights and other files.
        known: Networks of timm for those that only users have, by name.
    """
    if "precompute" in stage:
        own = stage["precompute"]
        own |= {"batch_size": BATCH, "min_accuracy": 0.0, "threads": 1, "device": "cpu"}
        own["views"]["count"] = min(VIEWS, own["views"]["count"])
        if "top_k" in own.get("encoding", {}):
            own["encoding"]["top_k"] = TOP_K
        for teacher in own["teachers"].values():
            if teacher["model"] in known:
                teacher |= {"model": known[teacher["model"]]["model"], "weights": "pretrained"}
            _with_random_weights(teacher, folder)
    if "train" in stage:
        own = stage["train"]
        own.pop("epochs", None)
        own["steps"] = STEPS
        for key, value in {"batch_size": BATCH, "accumulate": 1}.items():
            own |= {key: value} if key in own else {}
        if "count" in own.get("labels", {}):
            own["labels"]["count"] = LABELS
        _with_random_weights(own["student"], folder)
        adapter = own["student"].get("surgery", {}).get("adapter", {})
        if "table" in adapter:
            adapter["table"] = str(_random_table(folder))
    if "synthesize" in stage and "count" in stage["synthesize"]:
        stage["synthesize"]["count"] = LABELS
    if "pick_bits" in stage:
        _with_random_weights(stage["pick_bits"]["network"], folder)
    if "fit_weights" in stage:
        stage["fit_weights"]["seen"]["count"] = LABELS


def _with_random_weights(network: dict[str, Any], folder: Path) -> None:
    """Replace weights that would be downloaded, or that users have, by a file of random ones."""
    if network.get("weights") is None:
        return
    file = folder / f"{network['model']}.pth"
    if not file.exists():
        torch.manual_seed(0)
        plain = NetworkConfig(model=network["model"], kwargs=network.get("kwargs", {}))
        torch.save(build_network(plain, len(CLASSES), untrained=True).state_dict(), file)
    network["model"] = network["model"].partition(".")[0]  # the tag is one of timm's weights
    network["weights"] = str(file)


def _random_table(folder: Path) -> Path:
    """Return a file with a random vector for each class, as long as those of a ViT-B."""
    vectors = np.random.default_rng(0).standard_normal((len(CLASSES), 768), np.float32)
    np.savez(folder / "table.npz", **dict(zip(CLASSES, vectors, strict=True)))
    return folder / "table.npz"
