"""Programs of torch.export and TorchScript: batches, sizes, what they may return."""

from __future__ import annotations

import hashlib
import logging
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from logitcache.errors import NetworkError, UsageError
from logitcache.networks.build import NetworkConfig, architecture, build_network, input_spec
from logitcache.networks.digest import weights_digest
from logitcache.networks.taps import OUTPUT, PRE_LOGITS, TappedNetwork
from tests.networks.user_networks import (
    HALF,
    INPUT,
    QUARTER,
    load,
    write_exported,
    write_module,
    write_torchscript,
)

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load(write_module(tmp_path_factory.mktemp("programs"), "of_programs")).tiny().eval()


@pytest.fixture(scope="module", params=["dynamic.pt2", "fixed.pt2", "traced.torchscript"])
def program(request: pytest.FixtureRequest, network: Any, tmp_path_factory: Any) -> Path:
    """Return a program of each kind; the second is for batches of 4 alone."""
    path: Path = tmp_path_factory.mktemp("programs") / request.param
    if path.suffix == ".torchscript":
        return write_torchscript(network, path)
    return write_exported(network, path, dynamic=path.stem == "dynamic")


def build(path: Path, num_classes: int | None = None, **fields: Any) -> Any:
    config = NetworkConfig.parse({"model": str(path), **fields}, "network")
    return build_network(config, num_classes)


@pytest.mark.parametrize("images", [1, 2, 3, 4, 9])
def test_any_number_of_images_gives_the_outputs_of_the_network(
    program: Path, network: Any, images: int
) -> None:
    pixels = torch.randn(images, 3, 8, 8, generator=torch.Generator().manual_seed(images))
    with torch.no_grad():
        torch.testing.assert_close(build(program, **INPUT)(pixels), network(pixels))


def test_a_program_is_described(program: Path) -> None:
    built = build(program, **INPUT)
    assert (built.num_classes, built.fixed_batch) == (3, 4 if program.stem == "fixed" else None)
    spec = input_spec(built)
    assert (spec.size, spec.mean, spec.std) == (8, HALF, QUARTER)
    described = architecture(built, NetworkConfig(model=str(program)))
    assert described["code_sha256"] == hashlib.sha256(program.read_bytes()).hexdigest()
    assert weights_digest(built) == weights_digest(build(program, **INPUT))
    assert built.train().eval() is built


def test_layers_of_a_program_are_not_captured(program: Path) -> None:
    built = build(program, **INPUT)
    assert TappedNetwork(built, [OUTPUT], size=8).shapes[OUTPUT].shape == (3,)
    for tap in (PRE_LOGITS, "program.body"):
        with pytest.raises(UsageError, match="layers of an exported program cannot be captured"):
            TappedNetwork(built, [tap], size=8)


def test_the_size_is_that_of_the_export(network: Any, tmp_path: Path) -> None:
    path = write_exported(network, tmp_path / "p.pt2")
    assert input_spec(build(path, mean=HALF, std=QUARTER)).size == 8
    with pytest.raises(UsageError, match="exported for images of another size") as caught:
        build(path, **{**INPUT, "size": 16})
    assert caught.value.expected == "size 8"


def test_what_a_file_does_not_state_is_not_guessed(network: Any, tmp_path: Path) -> None:
    path = write_torchscript(network, tmp_path / "p.torchscript")
    with pytest.raises(UsageError, match="the input of the network is not known") as caught:
        build(path)
    assert caught.value.got == "no size, no mean, no std"
    exported = write_exported(network, tmp_path / "p.pt2")
    with pytest.raises(UsageError, match="the input of the network is not known") as caught:
        build(exported)
    assert caught.value.got == "no mean, no std"


class Fixed(nn.Module):
    """A network whose batch becomes a constant in a trace."""

    def forward(self, images: Tensor) -> Tensor:
        return images.reshape(8, -1)[:, :5]


def test_a_trace_for_another_batch_is_refused_before_anything_is_computed(tmp_path: Path) -> None:
    path = write_torchscript(Fixed(), tmp_path / "fixed.torchscript", batch=8)
    with pytest.raises(NetworkError, match="the network does not return logits") as caught:
        build(path, **INPUT)
    assert "(8, 5)" in str(caught.value.got)
    assert "2 images" in str(caught.value.got)


class OnAnotherDevice(nn.Module):
    """A network whose trace contains a device."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3)) + torch.ones(3, device="meta")


def test_a_program_for_another_device_is_refused(tmp_path: Path) -> None:
    write_torchscript(OnAnotherDevice(), tmp_path / "meta.ts", batch=None)
    with pytest.raises(NetworkError, match="cannot be run on these images") as caught:
        build(tmp_path / "meta.ts", **INPUT)
    assert "device" in str(caught.value.hint)


class Two(nn.Module):
    def forward(self, images: Tensor, more: Tensor) -> Tensor:
        return (images + more).mean((2, 3))


class Grey(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))


@pytest.mark.parametrize(
    ("module", "shapes", "message"),
    [
        (Two(), [(2, 3, 8, 8), (2, 3, 8, 8)], "does not take RGB images"),
        (Grey(), [(2, 1, 8, 8)], "does not take RGB images"),
        (Grey(), [(2, 3, 8, 6)], "is not square"),
    ],
)
def test_other_inputs_are_refused(
    module: nn.Module, shapes: list[tuple[int, ...]], message: str, tmp_path: Path
) -> None:
    inputs = tuple(torch.zeros(*shape) for shape in shapes)
    torch.export.save(torch.export.export(module, inputs), tmp_path / "p.pt2")
    with pytest.raises(NetworkError, match=message):
        build(tmp_path / "p.pt2", **INPUT)


def test_half_precision_is_refused(tmp_path: Path) -> None:
    exported = torch.export.export(Grey(), (torch.zeros(2, 3, 8, 8, dtype=torch.float16),))
    torch.export.save(exported, tmp_path / "p.pt2")
    with pytest.raises(NetworkError, match="another data type"):
        build(tmp_path / "p.pt2", **INPUT)


@pytest.mark.parametrize("name", ["p.pt2", "p.torchscript", "p.pt"])
@pytest.mark.parametrize("content", ["text", "weights"])
def test_other_files_are_refused_without_a_traceback(
    name: str, content: str, tmp_path: Path, network: Any, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / name
    if content == "text":
        path.write_text("no program")
    else:
        torch.save(network.state_dict(), path)
    with caplog.at_level(logging.WARNING), pytest.raises(NetworkError) as caught:
        build(path, **INPUT)
    assert caught.value.what == "the program cannot be loaded"
    assert "MODEL@FILE" in str(caught.value.hint)
    assert not caplog.records


def test_weights_and_arguments_are_part_of_the_program(network: Any, tmp_path: Path) -> None:
    path = write_exported(network, tmp_path / "p.pt2")
    for fields in ({"weights": "w.pth"}, {"kwargs": {"width": 9}}):
        with pytest.raises(UsageError, match="contains its weights and arguments"):
            build(path, **INPUT, **fields)


class Constant(nn.Module):
    """A network that creates a tensor on the device of its export."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3)) + torch.arange(3, device=torch.device("cpu"))


def test_a_program_moves_with_the_devices_in_its_graph(tmp_path: Path) -> None:
    """To the device of shapes without numbers, since every machine has it."""
    built = build(write_exported(Constant(), tmp_path / "p.pt2"), **INPUT)
    assert torch.equal(built(torch.zeros(2, 3, 8, 8)), torch.tensor([[0.0, 1.0, 2.0]] * 2))
    moved = built.to("meta")
    assert moved(torch.zeros(2, 3, 8, 8, device="meta")).device.type == "meta"
