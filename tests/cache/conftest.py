"""Both ways of decoding a shard, for what must hold of either."""

from __future__ import annotations

import pytest

from logitcache.cache import objects


@pytest.fixture(params=["direct", "zarr"])
def decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Read shards by our own decoder, then by zarr's."""
    name: str = request.param
    if name == "zarr":
        monkeypatch.setattr(objects, "shard_layout", lambda *_: None)
    return name
