"""A sealed cache that others are made from: its units as bytes and as arrays."""

from __future__ import annotations

import threading
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from logitcache.cache.format.images import split_images
from logitcache.cache.format.placement import read_ledger
from logitcache.cache.format.samples import sample_placement
from logitcache.cache.read.objects import CommittedObjects
from logitcache.cache.read.reader import Cache, open_cache
from logitcache.cache.store.open import locate

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from logitcache.cache.format.ledger import Commit
    from logitcache.cache.format.manifest import RevisionPointer
    from logitcache.cache.format.placement import Placement
    from logitcache.cache.format.samples import Samples
    from logitcache.cache.store.base import Location
    from logitcache.encoding.arrays import Encoded

__all__ = ["SourceCache"]


class SourceCache:
    """A sealed cache, read unit by unit; nothing of it is changed.

    Args:
        url: A folder or URL.
        revision: sha256 of the revision that it must have, or the first 12 digits or more.

    Attributes:
        location: Its location.
        cache: Its reader.
        bytes_read: Bytes of the shards that were read.

    Raises:
        CacheError: See :func:`~logitcache.cache.read.reader.open_cache`.
    """

    def __init__(
        self, url: str | os.PathLike[str] | Location, *, revision: str | None = None
    ) -> None:
        self.location = locate(url)
        # each shard is read once, so no copies are kept on this machine
        self.cache: Cache = open_cache(self.location, revision=revision, local_copy_bytes=0)
        self.bytes_read = 0
        self._objects = CommittedObjects(self.location)
        self._commits: dict[str, dict[int, Commit]] = {}
        self._lock = threading.Lock()

    def __str__(self) -> str:
        return str(self.location)

    @property
    def pointer(self) -> RevisionPointer:
        """Number and sha256 of its revision."""
        assert self.cache.manifest.revision is not None
        return self.cache.manifest.revision

    @property
    def segments(self) -> tuple[tuple[int, int], ...]:
        """(start, rows) of its sealed segments."""
        return self.cache.revision.segments

    @cached_property
    def has_image(self) -> NDArray[np.bool_]:
        """Which rows are images, readable or not: bool, up to the end of the last block."""
        block = self.cache.unit_rows
        rows = np.zeros(-(-self.cache.rows_end // block) * block, np.bool_)
        for start, count in self.segments:
            rows[start : start + count] = True
        return rows

    @cached_property
    def samples(self) -> Samples:
        """Samples of all rows; about 60 bytes and a key for each row."""
        placement = sample_placement(self.cache.manifest)
        self._count(placement, list(self.commits(placement).values()), placement.specs)
        return self.cache.samples

    def commits(self, placement: Placement) -> dict[int, Commit]:
        """Return the commits of all units of a view, by unit.

        Raises:
            CacheDamaged: Its ledger is missing or has changed.
        """
        kept = self._commits.get(placement.ledger)
        if kept is None:
            units = placement.units(self.segments, self.cache.unit_rows)
            kept = read_ledger(self.location, self.cache.revision, placement, units).commits
            self._commits[placement.ledger] = kept
        return kept

    def shards(self, placement: Placement, unit: int) -> dict[str, bytes]:
        """Return the shards of a unit by name of the array, compared with their commit.

        Raises:
            CacheDamaged: An object is not the one that was committed.
        """
        commit = self.commits(placement)[unit]
        self._count(placement, [commit], placement.specs)
        return {name: self._objects.content(placement, commit, name) for name in placement.specs}

    def rows(self, placement: Placement, unit: int, names: Iterable[str] | None = None) -> Encoded:
        """Return the decoded rows of a unit by name of the array.

        Args:
            placement: Placement of the arrays.
            unit: Number of the unit.
            names: Names of the arrays; all by default.

        Raises:
            CacheDamaged: An object is not the one that was committed, or cannot be decoded.
        """
        commit = self.commits(placement)[unit]
        wanted = list(placement.specs if names is None else names)
        self._count(placement, [commit], wanted)
        read = self._objects.read(placement, [commit], [n for n in wanted if not placement.page(n)])
        for name in wanted:
            if placement.page(name):
                pages = self._objects.pages(placement, commit, name)
                end = f"{name.removesuffix('content')}end"
                read[name] = split_images(pages, read[end])
        return read

    def sample_unit(self, unit: int, names: Iterable[str]) -> Encoded:
        """Return some arrays of the samples of a unit, as they are stored."""
        return self.rows(sample_placement(self.cache.manifest), unit, names)

    def _count(self, placement: Placement, commits: list[Commit], names: Iterable[str]) -> None:
        paths = [placement.path(name) for name in names]
        size = sum(commit.arrays[path].bytes for commit in commits for path in paths)
        with self._lock:  # units are copied by several threads
            self.bytes_read += size
