"""Requests in a server's log, by what was requested."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from logitcache.cache.format.ledger import StoredArray
    from logitcache.cache.read.reader import Cache
    from tests.remote.servers import Request

__all__ = ["Traffic", "stored_targets", "traffic_of"]

_TARGET = re.compile(r"/(teachers/[^?]+/c/[\d/]+)")
_SAMPLE = re.compile(r"/(samples/\w+/c/[\d/]+)")


@dataclass(frozen=True)
class Traffic:
    """Requests of a run.

    Attributes:
        targets: Keys of the shards of teachers that were sent whole, in order.
        target_bytes: Their bytes.
        samples: Shards of the samples that were sent.
        metadata: All other answers: documents, and questions whether something is there.
        failed: Answers that were no use: 503, or cut off.
    """

    targets: tuple[str, ...]
    target_bytes: int
    samples: int
    metadata: int
    failed: int


def traffic_of(log: Iterable[Request]) -> Traffic:
    """Sort the log of a server."""
    log = list(log)
    good = [request for request in log if request.status < 500 and not request.cut]
    targets = [(m[1], r.bytes) for r in good if (m := _TARGET.search(r.path)) is not None]
    samples = sum(_SAMPLE.search(request.path) is not None for request in good)
    return Traffic(
        targets=tuple(key for key, _ in targets),
        target_bytes=sum(size for _, size in targets),
        samples=samples,
        metadata=len(good) - len(targets) - samples,
        failed=len(log) - len(good),
    )


def stored_targets(cache: Cache, view_id: str, arrays: Iterable[str]) -> dict[str, StoredArray]:
    """Return the shards of one view by key, as they were committed.

    Args:
        cache: The cache.
        view_id: The view.
        arrays: Names of the arrays that training reads.
    """
    wanted = set(arrays)
    return {
        stored.key: stored
        for group in cache.teachers.values()
        for commit in cache._ledger(group.placement(view_id)).commits.values()
        for path, stored in commit.arrays.items()
        if path.rpartition("/")[2] in wanted
    }
