"""Calls by which a batch reaches a CUDA device; ``tests/accelerator`` runs it on one."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor

from logitcache.batch import SparseLogits, TargetBatch
from logitcache.targets import transfer
from logitcache.targets.transfer import Transfer

if TYPE_CHECKING:
    from collections.abc import Iterator

MEAN, STD = (0.5, 0.25, 0.0), (0.5, 0.25, 1.0)


def targets() -> TargetBatch:
    sparse = SparseLogits(torch.zeros(2, 3).long(), torch.randn(2, 3), torch.randn(2, 2), 9)
    return TargetBatch(torch.arange(2), torch.arange(2), {"t": sparse}, lam=torch.rand(2))


class Device:
    """Records what PyTorch is called with, in place of a CUDA device."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self.recorded: list[tuple[int, ...]] = []
        monkeypatch.setattr(transfer, "_stream_of", lambda _: "own")
        monkeypatch.setattr(torch.cuda, "stream", self._stream)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda _: self)
        # functions, not bound methods: a tensor binds them when they are looked up
        monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: self._pinned(tensor))
        monkeypatch.setattr(Tensor, "record_stream", lambda tensor, s: self._recorded(tensor, s))

    def wait_stream(self, stream: str) -> None:
        self.calls.append(f"wait for {stream}")

    @contextmanager
    def _stream(self, stream: str) -> Iterator[None]:
        self.calls.append(f"enter {stream}")
        yield
        self.calls.append(f"leave {stream}")

    def _pinned(self, tensor: Tensor) -> Tensor:
        self.calls.append("pin")
        return tensor.clone()

    def _recorded(self, tensor: Tensor, stream: object) -> None:
        assert stream is self
        self.calls.append("record")
        self.recorded.append(tuple(tensor.shape))


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    return Device(monkeypatch)


def test_images_are_normalized_on_the_stream_of_the_copy(device: Device) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 4), dtype=np.uint8)
    expected = (pixels / 255.0 - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    images = Transfer(torch.device("cpu"), MEAN, STD).images(pixels)
    pixels[:] = 0
    torch.testing.assert_close(images, torch.from_numpy(expected).float(), rtol=1e-5, atol=1e-5)
    assert device.calls == ["pin", "enter own", "leave own", "wait for own", "record"]
    assert device.recorded == [(2, 3, 4, 4)]


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (1, 3, 8, 8), (5, 3, 224, 224), (300, 3, 32, 32)])
def test_images_on_the_processor_have_the_bits_of_three_operations(shape: tuple[int, ...]) -> None:
    """Whatever their size and number: they are normalized a few at a time."""
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    mean, std = ((255.0 * torch.tensor(values)).view(-1, 1, 1) for values in (MEAN, STD))
    expected = (torch.from_numpy(pixels).float() - mean) / std
    images = Transfer(torch.device("cpu"), MEAN, STD).images(pixels)
    pixels[:] = 0
    assert torch.equal(images, expected)


def test_every_tensor_of_the_targets_is_kept_for_the_step(device: Device) -> None:
    given = targets()
    moved = Transfer(torch.device("cpu"), MEAN, STD).targets(given)
    assert torch.equal(moved.teachers["t"].log_probs, given.teachers["t"].log_probs)
    assert moved.views == given.views
    copied, *rest = device.calls.count("pin"), *device.calls[6:]
    assert copied == 6
    assert rest == ["enter own", "leave own", "wait for own", *["record"] * 6]
    assert sorted(device.recorded) == [(2,), (2,), (2,), (2, 2), (2, 3), (2, 3)]


def test_other_devices_get_a_plain_copy() -> None:
    given = targets()
    assert Transfer(torch.device("cpu"), MEAN, STD).targets(given).rows is given.rows
