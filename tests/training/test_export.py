from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

import onnx
import pytest
import timm
import torch
import yaml
from huggingface_hub import ModelCard
from onnx.reference import ReferenceEvaluator
from safetensors import safe_open

from logitcache.cache.read.reader import open_cache
from logitcache.errors import UsageError
from logitcache.networks.build import NetworkConfig, build_network, class_names_of, input_spec
from logitcache.precompute.build import build_cache
from logitcache.precompute.config import PrecomputeConfig
from logitcache.training.export.export import export_network
from logitcache.training.loop import train_student
from logitcache.training.run.result import read_result
from tests.training.test_loop import config

if TYPE_CHECKING:
    from pathlib import Path

CIVT: dict[str, Any] = {
    "model": "civt_tiny_patch16_224",
    "kwargs": {
        "img_size": 8,
        "patch_size": 4,
        "embed_dim": 16,
        "depth": 1,
        "num_heads": 2,
        "heads": ["red"],
        "stems": [],
    },
}


@pytest.fixture(scope="module")
def cache(
    images: Path, teachers: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("export") / "cache"
    requested = {
        "red": {**teachers["red"], "features": {"pre_logits": {}, "layer1": {"tokens": 5}}}
    }
    values = {"cache": str(path), "data": str(images), "teachers": requested, "unit_rows": 16}
    build_cache(PrecomputeConfig.parse({**values, "views": {"count": 1}}, ""))
    return path


@pytest.fixture(scope="module")
def exported(images: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the export of a student with heads, projectors, a cache and ONNX."""
    out = tmp_path_factory.mktemp("export") / "run"
    objectives = [
        {"label": {"head": "heads.cls"}},
        {"soft": {"head": "heads.red", "teachers": {"red": 1.0}}},
        {"match": {"teacher": "red", "tap": "layer1", "student": "blocks.0", "prefix": False}},
    ]
    fields: dict[str, Any] = {"cache": str(cache), "objectives": objectives, "student": CIVT}
    train_student(config(out, images, **fields, epochs=1, onnx=True, license="apache-2.0"))
    return out / "export"


def test_projectors_are_not_exported_and_timm_opens_it(exported: Path) -> None:
    network: Any = timm.create_model(f"local-dir:{exported}", pretrained=True)
    assert list(network.heads) == ["cls", "red"]
    assert not [name for name in network.state_dict() if "objective" in name]


def test_onnx_answers_as_the_network_does(exported: Path) -> None:
    network: Any = timm.create_model(f"local-dir:{exported}", pretrained=True).eval()
    images = torch.randn(3, 3, 8, 8)
    written = onnx.load(exported / "model.onnx")
    (logits,) = ReferenceEvaluator(written).run(None, {"images": images.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(logits), network(images), rtol=1e-4, atol=1e-5)


def test_the_card_says_where_it_comes_from(exported: Path, cache: Path) -> None:
    card = (exported / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "timm"
    manifest = open_cache(cache).manifest
    assert (
        f"| red | `rednet26_small` | `{manifest.teachers['red'].lock['weights_sha256'][:16]}` |"
        in card
    )
    assert str(cache) in card
    assert (manifest.data.fingerprint or "-")[:16] in card
    assert "top-1" in card
    recipe = yaml.safe_load(card.split("```yaml")[1].split("```")[0])
    assert recipe["objectives"][1]["soft"]["head"] == "heads.red"
    code = (
        card.split("```python")[1]
        .split("```")[0]
        .replace("local-dir:export", f"local-dir:{exported}")
    )
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["network"].num_classes == 3


def test_the_card_has_the_metadata_of_the_hub(exported: Path, images: Path) -> None:
    data = ModelCard.load(exported / "README.md").data
    assert data.license == "apache-2.0"
    assert data.datasets == [images.name]
    assert data.metrics == ["accuracy"]
    assert data.eval_results is not None
    (top1, *_) = data.eval_results
    assert (top1.task_type, top1.metric_type, top1.dataset_name) == (
        "image-classification",
        "accuracy",
        images.name,
    )
    result = read_result(exported.parent)
    assert result is not None
    assert result.evaluation is not None
    assert top1.metric_value == result.evaluation.top1


def test_weights_name_the_library_of_their_tensors(exported: Path) -> None:
    with safe_open(exported / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_names_of_other_classes_are_forgotten(exported: Path, tmp_path: Path) -> None:
    network = build_network(NetworkConfig(model=f"local-dir:{exported}"))
    assert class_names_of(network) == ["bird", "cat", "dog"]
    export_network(network, input_spec(network), tmp_path / "nameless")
    again = build_network(NetworkConfig(model=f"local-dir:{tmp_path / 'nameless'}"))
    assert class_names_of(again) is None


def test_without_the_libraries_onnx_is_refused_before_the_first_step(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "logitcache.training.export.onnx.importlib.util.find_spec",
        lambda name: None if name == "onnxscript" else found(name),
    )
    with pytest.raises(UsageError, match="not installed: onnxscript"):
        train_student(config(tmp_path / "run", images, epochs=1, onnx=True))
    assert not (tmp_path / "run").exists()
