"""Networks from code of the user: what is imported, what may be returned, what is recorded."""

from __future__ import annotations

import hashlib
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file

from logitcache.errors import LogitcacheError, NetworkError, UsageError
from logitcache.networks.build import (
    NetworkConfig,
    architecture,
    build_network,
    class_names_of,
    input_spec,
)
from logitcache.networks.taps import OUTPUT, PRE_LOGITS, TappedNetwork
from tests.networks.user_networks import HALF, INPUT, QUARTER, load, write_module

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def module(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of a module in the current folder."""
    name = f"user_{hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:12]}"
    write_module(tmp_path, name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return name


def build(name: str, num_classes: int | None = None, **fields: Any) -> Any:
    return build_network(NetworkConfig.parse({"model": name, **fields}, "network"), num_classes)


def test_a_factory_is_called_with_kwargs(module: str, tmp_path: Path) -> None:
    network = build(f"{module}:tiny", kwargs={"classes": 5})
    images = torch.randn(2, 3, 8, 8)
    expected = load(tmp_path / f"{module}.py").tiny(classes=5).eval()
    torch.testing.assert_close(network(images), expected(images), rtol=0, atol=0)
    spec = input_spec(network)
    assert (spec.size, spec.mean, spec.std, spec.interpolation) == (8, HALF, QUARTER, "bilinear")
    assert network.num_classes == 5
    digest = hashlib.sha256((tmp_path / f"{module}.py").read_bytes()).hexdigest()
    described = architecture(network, NetworkConfig(model=f"{module}:tiny", kwargs={"classes": 5}))
    assert described == {
        "architecture": f"{module}:tiny",
        "kwargs": {"classes": 5},
        "code_sha256": digest,
    }


def test_settings_of_the_user_replace_those_of_the_factory(module: str) -> None:
    fields: dict[str, Any] = {
        "size": 12,
        "mean": [0.1, 0.2, 0.3],
        "std": [1, 1, 1],
        "interpolation": "bicubic",
    }
    spec = input_spec(build(f"{module}:tiny", **fields))
    assert (spec.size, spec.mean, spec.std) == (12, (0.1, 0.2, 0.3), (1.0, 1.0, 1.0))
    assert spec.interpolation == "bicubic"


def test_a_timm_network_has_its_mean_replaced_too() -> None:
    spec = input_spec(build("resnet10t", mean=HALF, std=QUARTER, interpolation="bilinear"))
    assert (spec.mean, spec.std, spec.interpolation) == (HALF, QUARTER, "bilinear")


def test_an_input_that_is_not_known_is_not_guessed(module: str) -> None:
    with pytest.raises(UsageError, match="the input of the network is not known") as caught:
        build(f"{module}:bare", size=8)
    assert caught.value.got == "no mean, no std"
    assert "--set teachers.NAME.mean=[R,G,B]" in str(caught.value.hint)
    assert input_spec(build(f"{module}:bare", **INPUT)).size == 8


def test_the_input_may_be_returned_with_the_network(module: str) -> None:
    network = build(f"{module}:named")
    assert class_names_of(network) == ["bird", "cat", "dog"]
    assert input_spec(network).size == 8
    assert input_spec(build(f"{module}:embedding", 0)).std == QUARTER


def test_a_network_or_a_class_may_stand_for_the_factory(module: str) -> None:
    assert build(f"{module}:ready", **INPUT).num_classes == 3
    kwargs = {"classes": 4, "width": 8}
    assert build(f"{module}:Tiny", **INPUT, kwargs=kwargs).num_classes == 4


def test_a_network_is_run_in_float32(module: str) -> None:
    assert next(build(f"{module}:half").parameters()).dtype == torch.float32


def test_weights_are_loaded_from_a_file(module: str, tmp_path: Path) -> None:
    state = {n: t + 1 for n, t in build(f"{module}:tiny").state_dict().items()}
    save_file({f"module.{n}": t for n, t in state.items()}, tmp_path / "w.safetensors")
    loaded = build(f"{module}:tiny", weights=str(tmp_path / "w.safetensors"))
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, state[name])
    with pytest.raises(NetworkError, match="the weights do not fit the network"):
        build(f"{module}:tiny", weights=str(tmp_path / "w.safetensors"), kwargs={"classes": 4})


def test_pre_logits_and_output_are_taps(module: str) -> None:
    network = build(f"{module}:tiny")
    images = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        logits, taken = TappedNetwork(network, [PRE_LOGITS, OUTPUT], size=8)(images)
        torch.testing.assert_close(network.head(taken[PRE_LOGITS]), logits)
        torch.testing.assert_close(taken[OUTPUT], logits)


def test_a_backbone_has_its_output_only(module: str) -> None:
    network = build(f"{module}:embedding", 0)
    assert network.num_classes == 0
    assert TappedNetwork(network, [OUTPUT], size=8).shapes[OUTPUT].shape == (6,)
    with pytest.raises(UsageError, match="pre_logits is not defined"):
        TappedNetwork(network, [PRE_LOGITS], size=8)


@pytest.mark.parametrize(
    ("factory", "error", "message", "got"),
    [
        ("broken", NetworkError, "the factory raised an error", "KeyError: 'no such checkpoint'"),
        ("other", UsageError, "the factory does not return a network", "dict"),
        ("number", UsageError, "the factory is not a function", "int"),
        ("tyni", UsageError, "has no 'tyni'", None),
        ("typo", UsageError, "returns an unknown setting 'maen'", None),
        ("scalar_mean", UsageError, "returns an unusable mean", 0.5),
        ("wordy", NetworkError, "the network does not return logits", "dict with pooled"),
        ("misnamed", UsageError, "another number of outputs than names", "2: bird, cat"),
        ("Tiny", NetworkError, "the factory raised an error", None),
    ],
)
def test_what_a_factory_does_wrong_is_said(
    module: str, factory: str, error: type[LogitcacheError], message: str, got: object
) -> None:
    with pytest.raises(error, match=message) as caught:
        build(f"{module}:{factory}")
    assert f"{module}:{factory}" in str(caught.value.where)
    if got is not None:
        assert caught.value.got == got


def test_an_error_of_the_factory_has_its_line(module: str, tmp_path: Path) -> None:
    lines = (tmp_path / f"{module}.py").read_text().splitlines()
    line = next(n for n, text in enumerate(lines, 1) if "raise KeyError" in text)
    with pytest.raises(NetworkError) as caught:
        build(f"{module}:broken")
    assert str(caught.value.where).endswith(f"{module}.py, line {line}")


def test_arguments_that_a_factory_lacks_are_named(module: str) -> None:
    with pytest.raises(NetworkError, match=r"missing 2 required positional") as caught:
        build(f"{module}:Tiny")
    assert caught.value.where == f"{module}:Tiny"
    assert "kwargs" in str(caught.value.hint)


def test_another_size_than_the_network_takes(module: str) -> None:
    with pytest.raises(NetworkError, match="the network cannot be run") as caught:
        build(f"{module}:embedding", 0, size=2)
    assert "size" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("import no_such_package_at_all\n", NetworkError, "cannot be imported"),
        ("def f(:\n", NetworkError, "cannot be imported"),
        ("raise SystemExit('usage: train.py')\n", NetworkError, "cannot be imported"),
    ],
)
def test_a_module_that_cannot_be_imported(
    module: str, tmp_path: Path, source: str, error: type[LogitcacheError], message: str
) -> None:
    write_module(tmp_path, module, source)
    with pytest.raises(error, match=message) as caught:
        build(f"{module}:f")
    assert f"{module}.py, line 1" in str(caught.value.where)


def test_a_module_that_is_missing(module: str) -> None:
    with pytest.raises(UsageError, match="there is no module 'no_such_module_here'"):
        build("no_such_module_here:f")
    with pytest.raises(UsageError, match=rf"there is no module '{module}\.inner'"):
        build(f"{module}.inner:f")


def test_a_module_without_a_file_is_refused() -> None:
    with pytest.raises(NetworkError, match="has no file"):
        build("sys:exc_info")


def test_pretrained_is_for_other_forms(module: str) -> None:
    with pytest.raises(UsageError, match="networks of timm and torchvision"):
        build(f"{module}:tiny", weights="pretrained")


def test_the_current_folder_is_searched_first_only_while_importing(
    module: str, tmp_path: Path
) -> None:
    build(f"{module}:tiny")
    assert sys.path[0] != str(tmp_path)
    assert sys.path[-1] == str(tmp_path)
