"""Python's own web server; the others need programs that ``.ci/matrix`` fetches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from logitcache.cache.read.reader import open_cache
from logitcache.cache.verify.integrity import verify
from logitcache.encoding.dense import DenseEncoding
from logitcache.errors import CacheError, StorageError
from tests.cache.building import VIEW, make_cache
from tests.matrix.servers import http_server

if TYPE_CHECKING:
    from pathlib import Path


def test_a_cache_is_served_by_python(tmp_path: Path) -> None:
    """It knows no Range, so sizes and headers alone cannot be looked at."""
    logits = np.random.default_rng(0).normal(size=(20, 30)).astype(np.float32)
    make_cache(tmp_path / "c", {"a": (DenseEncoding(30), logits)}, 20)
    local = open_cache(tmp_path / "c").read("a", VIEW, 0, 32)["logp"]
    with http_server(tmp_path) as url:
        cache = open_cache(f"{url}/c", local_copy_bytes=0)
        np.testing.assert_array_equal(cache.read("a", VIEW, 0, 32)["logp"], local)
        assert verify(f"{url}/c").ok
        with pytest.raises(StorageError, match="does not support Range"):
            verify(f"{url}/c", quick=True)
        with pytest.raises(CacheError, match="no cache here"):
            verify(f"{url}/absent")
        (tmp_path / "c/teachers/a/logp/c/0/1/0").write_bytes(b"other")
        assert len(verify(f"{url}/c").faults) == 1
