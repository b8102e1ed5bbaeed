"""Residual adapters, classifiers over unit vectors, and networks that have both."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import timm
import torch

from logitcache.errors import NetworkError
from logitcache.networks.adapter import Adapter, AdapterHead, TableClassifier, adapted
from logitcache.networks.build import NetworkConfig, build_network, input_spec
from logitcache.training.export.export import export_network

if TYPE_CHECKING:
    from pathlib import Path

X = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def by_loops(adapter: Adapter, table: torch.Tensor, scale: float) -> list[list[float]]:
    """The logits, over Python floats."""
    first, second = adapter.linear1.weight.tolist(), adapter.linear2.weight.tolist()
    share, found = adapter.share.item(), []
    for f in X.tolist():
        hidden = [max(0.0, sum(w * x for w, x in zip(row, f, strict=True))) for row in first]
        changed = [sum(w * h for w, h in zip(row, hidden, strict=True)) for row in second]
        out = [max(0.0, share * c + (1 - share) * x) for c, x in zip(changed, f, strict=True)]
        length = math.sqrt(sum(x * x for x in out))
        rows = table.tolist()
        found.append(
            [scale * sum(a * b for a, b in zip(out, t, strict=True)) / length for t in rows]
        )
    return found


def test_logits_are_those_of_the_plain_loops() -> None:
    torch.manual_seed(1)
    table = torch.randn(4, 5, dtype=torch.float64)
    head = AdapterHead(Adapter(5, 10, share=0.3), TableClassifier(table, 9.0)).double()
    assert head(X).tolist() == [
        pytest.approx(row, rel=1e-12) for row in by_loops(head.adapter, table, 9.0)
    ]
    assert torch.autograd.gradcheck(head, (X.clone().requires_grad_(),))


def test_without_a_share_it_is_a_rectifier() -> None:
    assert torch.equal(Adapter(5, 10, share=0.0).double()(X), X.relu())


@pytest.mark.parametrize(
    ("model", "classifier", "kwargs"),
    [
        ("resnet10t", "fc", {"channels": [16, 16, 16, 32], "stem_width": 16}),
        ("vit_tiny_patch16_224", "head", {"img_size": 32, "embed_dim": 24, "depth": 1}),
    ],
)
@pytest.mark.parametrize("table", [True, False])
def test_a_network_with_an_adapter_is_exported_and_loaded_by_timm(
    model: str, classifier: str, kwargs: dict[str, Any], table: bool, tmp_path: Path
) -> None:
    torch.manual_seed(2)
    network: Any = build_network(NetworkConfig(model=model, kwargs=kwargs), 5).eval()
    last = network.get_submodule(classifier)
    width = last.in_features
    frozen = TableClassifier(torch.randn(5, width), 100.0)
    network.set_submodule(classifier, AdapterHead(Adapter(width, 7), frozen if table else last))
    export_network(adapted(network), input_spec(network, 32), tmp_path, list("abcde"))
    again: Any = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again(images), network(images))
        vectors = again.forward_head(again.forward_features(images), pre_logits=True)
        assert torch.equal(again.get_classifier()(vectors), network(images))
    assert again.state_dict().keys() == network.state_dict().keys()
    again.reset_classifier(3)
    with torch.no_grad():
        assert again(images).shape == (2, 3), "without an adapter, as any network of timm"
    assert again.pretrained_cfg["label_names"] == list("abcde")
    assert input_spec(again).size == 32


def test_a_network_without_an_adapter_stays_the_same() -> None:
    network: Any = build_network(NetworkConfig(model="resnet10t"), 5)
    assert adapted(network) is network
    cfg: Any = network.pretrained_cfg
    assert cfg["architecture"] == "resnet10t"


@pytest.mark.parametrize(
    "name", ["local-dir:/somewhere", "hf-hub:some/where", "adapted_classifier"]
)
def test_arguments_of_an_export_name_no_other_place(name: str) -> None:
    config = NetworkConfig(model="adapted_classifier", kwargs={"trunk": name})
    with pytest.raises(NetworkError, match="is not a model of timm"):
        build_network(config, 5)
