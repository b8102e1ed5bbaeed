"""Networks of torchvision: weights, preprocessing, classes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any
from urllib.error import URLError

import pytest
import torch
import torchvision
from timm.data import ImageNetInfo

from logitcache.errors import NetworkError, UsageError
from logitcache.networks.build import NetworkConfig, build_network, class_names_of, input_spec
from logitcache.networks.taps import OUTPUT, PRE_LOGITS, TappedNetwork
from logitcache.networks.torchvision_models import _preset

if TYPE_CHECKING:
    from pathlib import Path

NAME = "mobilenet_v3_small"


def build(num_classes: int | None = None, name: str = NAME, **fields: Any) -> Any:
    config = NetworkConfig.parse({"model": f"torchvision/{name}", **fields}, "network")
    return build_network(config, num_classes)


@pytest.fixture(scope="module")
def fine_tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """Return a weights file of 5 classes, and its network."""
    torch.manual_seed(0)
    network: Any = torchvision.models.get_model(NAME, weights=None, num_classes=5).eval()
    path = tmp_path_factory.mktemp("torchvision") / "fine-tuned.pth"
    torch.save({"model": network.state_dict()}, path)
    return path, network


def test_a_weights_file_decides_the_number_of_classes(fine_tuned: tuple[Path, Any]) -> None:
    path, reference = fine_tuned
    network = build(weights=str(path))
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(network(images), reference(images), rtol=0, atol=0)
    assert (network.num_classes, class_names_of(network)) == (5, None)
    assert input_spec(network).size == 224


def test_without_classes_the_classifier_is_left_out(fine_tuned: tuple[Path, Any]) -> None:
    path, reference = fine_tuned
    network = build(0, weights=str(path))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        _, taken = TappedNetwork(network, [PRE_LOGITS, OUTPUT], size=64)(images)
        torch.testing.assert_close(reference.classifier[3](taken[PRE_LOGITS]), reference(images))
    torch.testing.assert_close(taken[OUTPUT], taken[PRE_LOGITS])
    assert not [name for name in network.state_dict() if name.startswith("classifier.3")]


def test_a_file_without_a_classifier_is_a_backbone(
    fine_tuned: tuple[Path, Any], tmp_path: Path
) -> None:
    _, reference = fine_tuned
    body = {n: t for n, t in reference.state_dict().items() if not n.startswith("classifier.3")}
    torch.save(body, tmp_path / "body.pth")
    network = build(0, weights=str(tmp_path / "body.pth"))
    assert {n: t.shape for n, t in network.state_dict().items()} == {
        n: t.shape for n, t in body.items()
    }
    with pytest.raises(NetworkError, match="no classifier"):
        build(weights=str(tmp_path / "body.pth"))


@pytest.mark.parametrize("weights", ["pretrained", "IMAGENET1K_V1", "DEFAULT"])
def test_published_weights_come_from_the_cache_of_torch_hub(
    weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    published: Any = torchvision.models.get_model_weights(NAME)
    state = torchvision.models.get_model(NAME, weights=None).state_dict()
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(state, folder / published.DEFAULT.url.rpartition("/")[2])
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    network = build(weights=weights)
    assert torch.equal(network.state_dict()["features.0.0.weight"], state["features.0.0.weight"])
    info: Any = ImageNetInfo("imagenet-1k")
    assert class_names_of(network) == info.label_names()


def test_weights_that_cannot_be_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    monkeypatch.setattr(torch.hub, "urlopen", offline)
    with pytest.raises(NetworkError, match="the weights cannot be downloaded") as caught:
        build(weights="pretrained")
    assert "no route to host" in str(caught.value.got)


def test_a_weights_name_that_is_neither_published_nor_a_file() -> None:
    with pytest.raises(NetworkError, match="the weights file does not exist"):
        build(weights="IMAGENET1K_V9")


def test_every_published_preprocessing_is_that_of_torchvision() -> None:
    """By timm's rule: the shorter side is resized to floor(crop / crop_pct)."""
    known = torchvision.models.list_models(module=torchvision.models)
    assert len(known) >= 80
    for name in known:
        for weights in torchvision.models.get_model_weights(name):
            preset, own = weights.transforms(), _preset(weights)
            crop = own["input_size"][1]
            assert [crop] == preset.crop_size
            assert [math.floor(crop / own["crop_pct"])] == preset.resize_size
            assert (list(own["mean"]), list(own["std"])) == (preset.mean, preset.std)
            assert own["interpolation"] == preset.interpolation.value


@pytest.mark.parametrize("name", ["squeezenet1_1", "vit_b_16", "shufflenet_v2_x0_5"])
def test_the_classifier_is_found(name: str) -> None:
    network = build(name=name, kwargs={"num_classes": 7}, size=224)
    classifier = network.get_classifier()
    assert 7 in {getattr(classifier, "out_features", 0), getattr(classifier, "out_channels", 0)}


def test_arguments_that_do_not_exist() -> None:
    with pytest.raises(NetworkError, match="torchvision cannot build the model"):
        build(name="resnet18", kwargs={"depth": 3})


def test_a_size_that_the_network_does_not_take() -> None:
    with pytest.raises(NetworkError, match="the network cannot be run") as caught:
        build(name="vit_b_32", size=64)
    assert "Expected 224 but got 64" in str(caught.value.got)


def test_weights_of_another_network(fine_tuned: tuple[Path, Any]) -> None:
    with pytest.raises(NetworkError, match="the weights do not fit the network"):
        build(name="shufflenet_v2_x0_5", weights=str(fine_tuned[0]))
    with pytest.raises(UsageError, match="no classification network"):
        build(name="mobilenet_v4")
