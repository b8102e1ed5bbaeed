from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from logitcache.errors import LogitcacheError, NetworkError, UsageError
from logitcache.networks.build import NetworkConfig, architecture, build_network, input_spec
from logitcache.networks.digest import weights_digest
from logitcache.training.export import export_network

if TYPE_CHECKING:
    from pathlib import Path

SMALL: dict[str, Any] = {"channels": [16, 16, 16, 16], "stem_width": 16}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_file(timm.create_model("resnet10t", num_classes=7, **SMALL).state_dict(), path)
    return path


def test_a_weights_file_decides_the_size_of_the_head(weights: Path) -> None:
    config = NetworkConfig(model="resnet10t", weights=str(weights), kwargs=SMALL)
    network = build_network(config)
    assert network.num_classes == 7
    again = build_network(config)
    assert weights_digest(network) == weights_digest(again)


def test_an_export_opens_by_timm_and_here(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = build_network(NetworkConfig(model="resnet10t", kwargs=SMALL), 5)
    export_network(network, input_spec(network, 24), tmp_path / "export")
    name = f"local-dir:{tmp_path / 'export'}"
    ours = build_network(NetworkConfig(model=name))
    theirs = timm.create_model(name, pretrained=True)
    assert weights_digest(ours) == weights_digest(theirs) == weights_digest(network)
    assert input_spec(ours).size == 24
    described = architecture(ours, NetworkConfig(model=name))
    assert described["architecture"] == "resnet10t"
    assert described["kwargs"]["channels"] == [16, 16, 16, 16]


def test_digests_tell_weights_apart_but_not_devices_or_orders() -> None:
    network: Any = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    before = weights_digest(network)
    assert before == weights_digest(network)
    network[1].running_mean[0] += 1e-6
    assert weights_digest(network) != before


@pytest.mark.parametrize(
    ("values", "error", "said"),
    [
        ({"model": "resnet51"}, UsageError, "resnet50"),
        ({"model": "local-dir:/no/such"}, NetworkError, "no exported network"),
        ({"model": "resnet10t", "weights": "/no/such"}, NetworkError, "no such weights"),
        ({"model": "resnet10t", "kwargs": {"colour": 1}}, NetworkError, "colour"),
    ],
)
def test_what_cannot_be_built_says_why(
    values: dict[str, object], error: type[LogitcacheError], said: str
) -> None:
    with pytest.raises(error, match=said):
        build_network(NetworkConfig.model_validate(values))


def test_weights_that_the_hub_does_not_give(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise FileNotFoundError("cannot find the requested files")  # as huggingface_hub has it

    monkeypatch.setattr("timm.create_model", offline)
    with pytest.raises(NetworkError, match="cannot be fetched") as caught:
        build_network(NetworkConfig(model="resnet10t", weights="pretrained"))
    assert caught.value.where == "resnet10t@pretrained"
    with pytest.raises(NetworkError, match="cannot be fetched"):
        build_network(NetworkConfig(model="hf-hub:timm/resnet10t.c3_in1k"))


def test_weights_that_do_not_fit(weights: Path) -> None:
    with pytest.raises(NetworkError, match="do not fit"):
        build_network(NetworkConfig(model="resnet10t", weights=str(weights)))
    config = NetworkConfig(model="resnet10t", weights=str(weights), kwargs=SMALL)
    with pytest.raises(NetworkError, match=r"size mismatch"):
        build_network(config, 10)


class _Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return (print, ("this must not run",))


def test_a_pickle_with_code_is_not_opened(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"state_dict": {}, "hook": _Evil()}, tmp_path / "evil.pth")
    with pytest.raises(NetworkError, match="holds more than tensors"):
        build_network(NetworkConfig(model="resnet10t", weights=str(tmp_path / "evil.pth")))
    assert "must not run" not in capsys.readouterr().out


def test_a_damaged_file(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"junk")
    with pytest.raises(NetworkError, match="cannot read"):
        build_network(NetworkConfig(model="resnet10t", weights=str(tmp_path / "w.safetensors")))


def test_a_size_the_network_does_not_take() -> None:
    vit = build_network(
        NetworkConfig(
            model="vit_tiny_patch16_224",
            kwargs={"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 1},
        ),
        3,
    )
    assert input_spec(vit).size == 16
    with pytest.raises(UsageError, match="does not take"):
        input_spec(vit, 20)
