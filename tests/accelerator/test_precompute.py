"""Teachers on an accelerator: compiled, in half precision, repeatable, and audited."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from logitcache.check.audit import audit_teachers
from logitcache.data.readers import open_source
from logitcache.teachers import ensemble
from logitcache.teachers.member import Member, TeacherConfig, on_device

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

Teachers = dict[str, dict[str, str]]


def shards(cache: Path) -> dict[str, str]:
    """Return the digests of all chunks of a cache, by key."""
    return {
        str(path.relative_to(cache)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(cache.rglob("c/**/*"))
        if path.is_file()
    }


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_two_runs_write_the_same_bytes(
    device: str, cache_on: Callable[..., Path], precision: str
) -> None:
    first, second = (shards(cache_on(device, precision=precision)) for _ in range(2))
    assert len(first) > 4
    assert first == second


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_audit_on_the_same_device_finds_nothing(
    device: str, cache_on: Callable[..., Path], images: Path, teachers: Teachers, precision: str
) -> None:
    cache = cache_on(device, precision=precision)
    for audit in audit_teachers(
        str(cache), open_source(str(images)), teachers, samples=None, device=device
    ):
        assert audit.samples == 120
        assert audit.mismatched == 0


def test_an_audit_on_a_processor_tolerates_the_noise_of_an_accelerator(
    device: str, cache_on: Callable[..., Path], images: Path, teachers: Teachers
) -> None:
    cache = cache_on(device)
    for audit in audit_teachers(
        str(cache), open_source(str(images)), teachers, samples=None, device="cpu"
    ):
        assert audit.mismatched == 0


def test_members_of_one_size_share_one_copy_of_the_pixels(
    device: str, teachers: Teachers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their outputs are those of each member alone, also where a batch is run in parts."""
    copies: list[int] = []

    def counted(pixels: NDArray[np.uint8], to: torch.device) -> torch.Tensor:
        copies.append(pixels.shape[-1])
        return on_device(pixels, to)

    monkeypatch.setattr(ensemble, "on_device", counted)
    configs = {name: TeacherConfig.parse(teachers[name], "") for name in ("cnn", "red")}
    configs["large"] = TeacherConfig.parse({**teachers["cnn"], "size": 16}, "")
    there = torch.device(device)
    group = ensemble.Ensemble(configs, device=there, precision="float32")
    draw = np.random.default_rng(0)
    pixels = {s: draw.integers(0, 256, (8, 3, s, s), dtype=np.uint8) for s in group.sizes}
    found = group.run(pixels, dict.fromkeys(configs, 4), dict.fromkeys(configs))
    assert sorted(copies) == [8, 16]
    for name, member in group.members.items():
        images = pixels[member.input.size]
        alone = np.concatenate([member.run(images[rows]) for rows in (slice(4), slice(4, 8))])
        np.testing.assert_array_equal(found[name], alone)


@pytest.mark.parametrize("how", [{"compile": True}, {"channels_last": True}], ids=str)
@pytest.mark.parametrize("name", ["cnn", "red"])
def test_a_compiled_teacher_has_the_same_outputs(
    cuda: str, teachers: Teachers, name: str, how: dict[str, bool]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 3, 8, 8), dtype=np.uint8)
    plain, other = (
        Member(
            name,
            TeacherConfig.parse({**teachers[name], **options}, ""),
            device=torch.device(cuda),
            precision="float32",
        ).run(pixels)
        for options in ({}, how)
    )
    np.testing.assert_allclose(plain, other, rtol=1e-3, atol=1e-3)
