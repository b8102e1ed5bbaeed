"""A cache with several views and teachers, its growth, and writes that are counted or fatal."""

from __future__ import annotations

import json
import os
import signal
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from logitcache.cache.read.reader import open_cache
from logitcache.cache.store.local import LocalLocation
from logitcache.cache.store.open import locate
from logitcache.cache.store.remote import RemoteLocation
from logitcache.cache.write.unit_commit import Conditions
from logitcache.cache.write.writer import CacheWriter
from logitcache.encoding.dense import DenseEncoding
from logitcache.encoding.sparse import SparseEncoding
from tests.cache.building import MORE_VIEWS, encode, make_cache, samples_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from logitcache.encoding.arrays import Encoded
    from logitcache.encoding.kinds import Encoding

ROWS = 40
LOGITS = np.random.default_rng(0).normal(size=(ROWS, 10)).astype(np.float32)
MORE_LOGITS = np.random.default_rng(1).normal(size=(ROWS, 10)).astype(np.float32)
ENCODINGS: dict[str, tuple[Encoding, Any]] = {
    "a": (SparseEncoding(10, 5), LOGITS),
    "b": (DenseEncoding(10), LOGITS),
}


def build(path: Path) -> Path:
    """Write and seal a cache of two teachers and one view."""
    make_cache(path, ENCODINGS, ROWS)
    return path


def grow(path: Path) -> Path:
    """Add two views to all teachers, and seal again."""
    writer = CacheWriter.open(locate(path, write=True))
    writer.add_views(MORE_VIEWS)
    for name in writer.teachers():
        writer.extend_group(name, list(MORE_VIEWS))
    samples = samples_of(ROWS)
    for group in writer.teachers().values():
        arrays = encode(group, MORE_LOGITS, samples)
        for view in MORE_VIEWS:
            for unit in range(len(samples["key"]) // group.unit_rows):
                rows = slice(unit * group.unit_rows, (unit + 1) * group.unit_rows)
                content = {name: array[rows] for name, array in arrays.items()}
                writer.write_unit(group, view, unit, content, Conditions(canonical_batch=4))
    writer.seal("fingerprint", {})
    return path


def contents(path: Any) -> dict[str, Encoded]:
    """Return all stored rows by teacher and view, as a reader gets them."""
    cache = open_cache(path)
    return {
        f"{name}/{view}": cache.read(name, view, 0, cache.rows_end)
        for name in cache.teachers
        for view in cache.views_of([name])
    }


def same_contents(ours: dict[str, Encoded], theirs: dict[str, Encoded]) -> bool:
    return ours.keys() == theirs.keys() and all(
        np.array_equal(ours[name][array], theirs[name][array], equal_nan=True)
        for name in ours
        for array in theirs[name]
    )


def files(path: Path) -> dict[str, bytes]:
    """Return every file of a folder."""
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def watch_writes(patch: pytest.MonkeyPatch, watch: Callable[[Any, str, bool], None]) -> None:
    """Call a function before and after every write to a folder or store: location, key, after."""
    for kind in (LocalLocation, RemoteLocation):

        def writing(
            this: Any, key: str, content: bytes, write: Callable[..., None] = kind.write
        ) -> None:
            watch(this, key, False)
            write(this, key, content)
            watch(this, key, True)

        patch.setattr(kind, "write", writing)


def in_a_child(
    work: Callable[[], object],
    log: Path,
    kill_at: int | None = None,
    meanwhile: Callable[[], object] = lambda: time.sleep(0.002),
) -> bool:
    """Run a function in a fork that is killed at a moment: before or after one of its writes.

    Args:
        work: The function.
        log: File that receives the keys of the writes that were finished, one a line.
        kill_at: Number of the moment; None to let it finish.
        meanwhile: Called again and again while the function runs.

    Returns:
        Whether it has finished.
    """
    child = os.fork()
    if child == 0:
        status = 1
        try:
            note_and_die(log, kill_at)
            work()
            status = 0
        finally:
            os._exit(status)
    ended = status = 0
    while not ended:
        meanwhile()
        ended, status = os.waitpid(child, os.WNOHANG)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the child has failed"
    return not os.WIFSIGNALED(status)


def note_and_die(log: Path, kill_at: int | None) -> None:
    """Note all writes of this process from now on, and kill it at one of the moments."""
    moments = 0
    descriptor = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)

    def watch(location: Any, key: str, after: bool) -> None:
        nonlocal moments
        if after:
            os.write(descriptor, f"{json.dumps(key)}\n".encode())
        moments += 1
        if moments - 1 == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    watch_writes(pytest.MonkeyPatch(), watch)  # never undone: this process ends soon


def written(log: Path) -> list[str]:
    """Return the keys of the writes that were finished."""
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
