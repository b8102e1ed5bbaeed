"""A sealed cache that others are made from: its units as bytes and as arrays."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from logitcache.cache.format.images import split_images
from logitcache.cache.format.names import SAMPLES
from logitcache.cache.format.placement import read_ledger
from logitcache.cache.format.samples import sample_fault, sample_placement
from logitcache.cache.read.objects import CommittedObjects
from logitcache.cache.read.reader import Cache, open_cache
from logitcache.cache.store.open import locate
from logitcache.errors import CacheDamaged
from logitcache.share.kept_reads import KeptDocuments, KeptShards

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from logitcache.cache.format.ledger import Commit
    from logitcache.cache.format.manifest import RevisionPointer
    from logitcache.cache.format.placement import Placement
    from logitcache.cache.store.base import Location
    from logitcache.encoding.arrays import Encoded

__all__ = ["SourceCache"]


class SourceCache:
    """A sealed cache, read unit by unit; nothing of it is changed.

    Shards of the samples are kept in memory, about 33 bytes for each image: rows are selected by
    them, digested and written. Everything else is read when it is needed, once in most commands.

    Args:
        url: A folder or URL.
        revision: sha256 of the revision that it must have, or the first 12 digits or more.
        kept: Shards of samples that other sources have read.

    Attributes:
        location: Its location.
        cache: Its reader.

    Raises:
        CacheError: See :func:`~logitcache.cache.read.reader.open_cache`.
    """

    def __init__(
        self,
        url: str | os.PathLike[str] | Location,
        *,
        revision: str | None = None,
        kept: KeptShards | None = None,
    ) -> None:
        self._documents = KeptDocuments(locate(url))
        self.location = self._documents.location
        # no copies of shards are kept on this machine
        self.cache: Cache = open_cache(self.location, revision=revision, local_copy_bytes=0)
        self._objects = CommittedObjects(self.location)
        self._samples = CommittedObjects(self.location, kept or KeptShards())
        self._commits: dict[str, dict[int, Commit]] = {}

    def __str__(self) -> str:
        return str(self.location)

    @property
    def bytes_read(self) -> int:
        """Bytes of the objects that were read, shards and documents."""
        return self._documents.bytes_read

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
        commit, objects = self.commits(placement)[unit], self._reader(placement)
        return {name: objects.content(placement, commit, name) for name in placement.specs}

    def decoded(self, placement: Placement, unit: int, shards: Mapping[str, bytes]) -> Encoded:
        """Return the decoded rows of shards of a unit that :meth:`shards` returned.

        Raises:
            CacheDamaged: One cannot be decoded.
        """
        return self._objects.decoded(placement, self.commits(placement)[unit], shards)

    def rows(self, placement: Placement, unit: int, names: Iterable[str] | None = None) -> Encoded:
        """Return the decoded rows of a unit by name of the array.

        Args:
            placement: Placement of the arrays.
            unit: Number of the unit.
            names: Names of the arrays; all by default.

        Raises:
            CacheDamaged: An object is not the one that was committed, cannot be decoded, or has
                impossible values of samples.
        """
        commit, objects = self.commits(placement)[unit], self._reader(placement)
        wanted = list(placement.specs if names is None else names)
        read = objects.read(placement, [commit], [n for n in wanted if not placement.page(n)])
        for name in wanted:
            if placement.page(name):
                pages = objects.pages(placement, commit, name)
                end = f"{name.removesuffix('content')}end"
                read[name] = split_images(pages, read[end])
        if placement.group == SAMPLES:
            self._check_samples(read)
        return read

    def sample_unit(self, unit: int, names: Iterable[str]) -> Encoded:
        """Return some arrays of the samples of a unit, as they are stored."""
        return self.rows(sample_placement(self.cache.manifest), unit, names)

    def samples(self, name: str) -> NDArray[Any]:
        """Return an array of the samples of all rows, as it is stored, padding included."""
        units = self.cache.units()
        return np.concatenate([self.sample_unit(unit, [name])[name] for unit in units])

    def _reader(self, placement: Placement) -> CommittedObjects:
        return self._samples if placement.group == SAMPLES else self._objects

    def _check_samples(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        fault = sample_fault(arrays, len(self.cache.class_names))
        if fault is not None:
            what = "the arrays of the samples contain impossible values"
            raise CacheDamaged(what, where=self.location, got=fault)
