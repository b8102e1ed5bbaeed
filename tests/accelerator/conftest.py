"""Tests that an accelerator may fail and a processor may not: each runs on both.

Those of the device are skipped without one. ``python -m tests.benchmarks.accelerator`` runs all
on a machine that has one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from logitcache.precompute.build import build_cache
from logitcache.precompute.config import PrecomputeConfig

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NO_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=NO_CUDA)])
def device(request: pytest.FixtureRequest) -> str:
    """Return the name of a device."""
    name: str = request.param
    return name


@pytest.fixture(params=[pytest.param("cuda", marks=NO_CUDA)])
def cuda(request: pytest.FixtureRequest) -> str:
    """Return the name of a CUDA device, for what takes too long on a processor."""
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def cache_on(
    images: Path, teachers: dict[str, dict[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Return a function that computes a cache on a device."""

    def computed(device: str, **fields: object) -> Path:
        path = tmp_path_factory.mktemp("accelerator") / "cache"
        values: dict[str, Any] = {
            "cache": str(path),
            "data": str(images),
            "teachers": teachers,
            "views": {"count": 2},
            "unit_rows": 16,
            "batch_size": 16,
            "device": device,
            **fields,
        }
        build_cache(PrecomputeConfig.parse(values, ""))
        return path

    return computed
