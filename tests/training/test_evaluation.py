from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from PIL import Image
from timm.data import create_transform
from torch.nn import functional

from logitcache.data.readers import open_source
from logitcache.networks.build import NetworkConfig, build_network, input_spec
from logitcache.training.evaluation.evaluator import Evaluator
from logitcache.training.export.export import export_network

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_a_network_scores_here_as_in_timm(
    images: Path,
    teachers: dict[str, dict[str, str]],
    tmp_path: Path,
    crop_mode: str,
    interpolation: str,
) -> None:
    """timm's own transform and a plain loop over the files, with the exported configuration."""
    network: Any = build_network(NetworkConfig(**teachers["cnn"]))
    spec = replace(
        input_spec(network, 24), crop_pct=0.8, crop_mode=crop_mode, interpolation=interpolation
    )
    export_network(network, spec, tmp_path / "net")
    network = build_network(NetworkConfig(model=f"local-dir:{tmp_path / 'net'}")).eval()
    spec = input_spec(network)
    assert (spec.crop_mode, spec.interpolation) == (crop_mode, interpolation)
    source = open_source(str(images))
    evaluator = Evaluator(source, spec, batch_size=60, device=torch.device("cpu"), threads=1)
    ours = evaluator(network)
    evaluator.close()
    transform: Any = create_transform(
        spec.size,
        interpolation=spec.interpolation,
        mean=spec.mean,
        std=spec.std,
        crop_pct=spec.crop_pct,
        crop_mode=spec.crop_mode,
    )
    pixels = [transform(Image.open(images / key).convert("RGB")) for key in source.keys]
    with torch.inference_mode():
        logits = network(torch.stack(pixels))
    labels = torch.from_numpy(source.labels).long()
    assert ours.loss == pytest.approx(float(functional.cross_entropy(logits, labels)), rel=2e-3)
    assert ours.top1 == pytest.approx(float((logits.argmax(1) == labels).float().mean()), abs=0.02)
