"""Random changes to a cache that is sealed again: an error of ours, in bounded time and memory.

``LOGITCACHE_TEST_MUTATIONS=2000 pytest tests/hostile/test_mutations.py`` tries as many.
"""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from logitcache.cache.verify.integrity import verify
from logitcache.errors import LogitcacheError
from logitcache.report.describe import describe
from tests.golden.caches_of import HERE, unpack
from tests.hostile.forge import Forgery
from tests.hostile.inputs import intact
from tests.hostile.test_hostile import MEGABYTES, SECONDS
from tests.hostile.visit import extend, read_everything
from tests.test_fuzzing import mutate

if TYPE_CHECKING:
    from collections.abc import Callable

COUNT = int(os.environ.get("LOGITCACHE_TEST_MUTATIONS", "60"))
MUTATIONS = settings(
    max_examples=COUNT, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
VISITORS: list[Callable[[str], object]] = [verify, describe, read_everything, extend]


@pytest.fixture(scope="module", params=["outputs", "images"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cache of outputs alone, and one that contains its images."""
    path = tmp_path_factory.mktemp("mutations") / "cache"
    if request.param == "images":
        return unpack(HERE / "0.2" / "packed.tar.xz", path)
    intact(path)
    return path


def _shard(cache: Forgery, data: st.DataObject) -> None:
    """Change a byte, or cut a shard."""
    shards = sorted(str(path) for path in cache.root.rglob("*") if "/c/" in str(path))
    path = Path(data.draw(st.sampled_from([s for s in shards if Path(s).is_file()])))
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans(), label="cut"):
        del content[data.draw(st.integers(0, len(content) - 1), label="length") :]
    else:
        content[data.draw(st.integers(0, len(content) - 1), label="byte")] ^= data.draw(
            st.integers(1, 255), label="bits"
        )
    path.write_bytes(content)
    cache.seal()


def _document(cache: Forgery, data: st.DataObject) -> None:
    """Change a value of a document that is not digested by another document of its kind."""
    names = [
        str(path.relative_to(cache.root))
        for path in sorted(cache.root.rglob("*.json"))
        if path.name == "zarr.json" or path.parent.name in {"probes", "withdrawn"}
    ]
    name = data.draw(st.sampled_from(names))
    cache.write(name, mutate(cache.read(name), data))
    cache.seal()


def _sealed(cache: Forgery, data: st.DataObject) -> None:
    """Change a commit, a ledger or the revision on the way up to the root."""
    kind = data.draw(st.sampled_from(["commit", "ledger", "revision"]))
    at, seen = data.draw(st.integers(0, 5)), 0

    def change(document: Any) -> None:
        nonlocal seen
        if seen == at or kind == "revision":
            mutate(document, data)
        seen += 1

    changes: dict[str, Any] = {kind: change}
    cache.seal(**changes)


@MUTATIONS
@given(data=st.data())
def test_a_mutated_cache_is_an_error_of_ours(base: Path, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        cache = Forgery(Path(folder) / "cache")
        shutil.copytree(base, cache.root)
        try:
            data.draw(st.sampled_from([_shard, _document, _sealed]))(cache, data)
        except (KeyError, TypeError, AttributeError, ValueError, OSError):
            return  # the forger cannot seal this one
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for visitor in VISITORS:
            started = time.process_time()
            with contextlib.suppress(LogitcacheError):
                visitor(str(cache.root))
            assert time.process_time() - started < SECONDS, visitor
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert grown < MEGABYTES * 1024, f"{grown} kB"
