"""Teachers on an accelerator: compiled, in half precision, repeatable, and audited."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from logitcache.check.audit import audit_teachers
from logitcache.data.readers import open_source
from logitcache.teachers.member import Member, TeacherConfig

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

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
