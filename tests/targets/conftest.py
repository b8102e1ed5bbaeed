from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from logitcache.cache.read.reader import Cache, open_cache
from logitcache.precompute.build import build_cache
from logitcache.precompute.config import PrecomputeConfig

if TYPE_CHECKING:
    from pathlib import Path

Teachers = dict[str, dict[str, str]]


@pytest.fixture(scope="session")
def cache_path(images: Path, teachers: Teachers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cache of a dense and a sparse teacher, two views, four units."""
    path = tmp_path_factory.mktemp("loader") / "cache"
    shared = {"cache": str(path), "data": str(images), "views": {"count": 2}, "unit_rows": 16}
    dense = {**shared, "teachers": {"cnn": teachers["cnn"]}}
    sparse = {**shared, "teachers": {"red": teachers["red"]}, "encoding": {"top_k": 2}}
    build_cache(PrecomputeConfig.parse(dense, ""))
    build_cache(PrecomputeConfig.parse(sparse, ""))
    return path


@pytest.fixture
def cache(cache_path: Path) -> Cache:
    return open_cache(cache_path)
