"""Reader of a sealed cache: whole units, those of the current revision only."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from logitcache.cache.format.fingerprints import FingerprintsDocument, read_fingerprints
from logitcache.cache.format.groups import (
    FeatureGroup,
    Group,
    TableGroup,
    TeacherGroup,
    check_group,
    groups_of,
    read_group,
)
from logitcache.cache.format.images import image_placement
from logitcache.cache.format.ledger import Commit, Ledger, Revision, read_revision
from logitcache.cache.format.manifest import Manifest, check_revision, read_manifest
from logitcache.cache.format.names import NO_VIEW, SAMPLES, TEACHERS, Status
from logitcache.cache.format.partners import partner_placement, partner_rows
from logitcache.cache.format.placement import Placement, read_ledger, units_of
from logitcache.cache.format.samples import Samples, sample_fault, sample_placement, samples_from
from logitcache.cache.format.squares import square_placement
from logitcache.cache.read.exclusions import read_withdrawn
from logitcache.cache.read.image_bytes import ImageBytes
from logitcache.cache.read.metadata_check import check_segments, manifest_fault, metadata_faults
from logitcache.cache.read.objects import CommittedObjects
from logitcache.cache.read.shard_cache import DEFAULT_COPY_BYTES, ShardCache, default_copies
from logitcache.cache.read.stored_squares import StoredSquares
from logitcache.cache.store.open import locate
from logitcache.errors import CacheDamaged, CacheUnsealed, UsageError, first_of, nearest

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from logitcache.cache.store.base import Location
    from logitcache.encoding.arrays import Encoded

__all__ = ["Cache", "open_cache"]


class Cache:
    """A sealed cache.

    Made by :func:`open_cache`. Instances can be pickled; they hold no open file.

    Attributes:
        manifest: The root manifest.
        revision: The current revision.
    """

    def __init__(
        self,
        location: Location,
        manifest: Manifest,
        revision: Revision,
        copies: ShardCache | None = None,
    ) -> None:
        self._location = location
        self.manifest = manifest
        self.revision = revision
        self._ledgers: dict[str, Ledger] = {}
        self._copies = copies
        self._objects = CommittedObjects(location, copies)

    def __reduce__(self) -> tuple[Any, ...]:
        # another process reads ledgers and metadata for itself
        return type(self), (self._location, self.manifest, self.revision, self._copies)

    def __repr__(self) -> str:
        of = f"{self.manifest.rows} images, {len(self.views)} views"
        return f"<Cache {self.url}: {of}, teachers {', '.join(self.manifest.teachers)}>"

    @property
    def url(self) -> str:
        """Location of the cache."""
        return str(self._location)

    @property
    def revision_sha256(self) -> str:
        """sha256 of the current revision, which determines every sealed byte."""
        assert self.manifest.revision is not None
        return self.manifest.revision.sha256

    @property
    def unit_rows(self) -> int:
        """U, the rows of a block, within which rows are shuffled and read."""
        return self.manifest.unit_rows

    @property
    def class_names(self) -> Sequence[str]:
        """Names of the classes of the images' labels."""
        return self.manifest.data.class_names

    @property
    def listing(self) -> int:
        """Version of the rules by which its images are listed."""
        return self.manifest.data.listing

    @property
    def decoding(self) -> int:
        """Version of the table by which its images are decoded."""
        return self.manifest.data.decoding

    @cached_property
    def teachers(self) -> Mapping[str, TeacherGroup]:
        """Groups of the teacher outputs that are sealed, by name."""
        return MappingProxyType(groups_of(self.groups, TeacherGroup))

    @cached_property
    def features(self) -> Mapping[str, FeatureGroup]:
        """Groups of the taps that are sealed, by ``<teacher>/<tap>``."""
        taps = groups_of(self.groups, FeatureGroup).values()
        return MappingProxyType({f"{group.teacher}/{group.tap}": group for group in taps})

    @cached_property
    def tables(self) -> Mapping[str, TableGroup]:
        """Groups of the tables that are sealed, by ``<teacher>/<table>``."""
        tables = groups_of(self.groups, TableGroup).values()
        return MappingProxyType({f"{group.teacher}/{group.table}": group for group in tables})

    @cached_property
    def groups(self) -> Mapping[str, Group]:
        """All groups that are sealed, by their names in the format: teachers, taps and tables."""
        below = f"{TEACHERS}/"
        sealed = {
            path.removeprefix(below).rpartition("/")[0]
            for path in self.revision.ledgers
            if path.startswith(below)
        }
        groups = {name: read_group(self._location, name) for name in sorted(sealed)}
        for group in groups.values():
            self._check_metadata(group.path, group.specs())
            check_group(group, self.manifest, self.url)
        return MappingProxyType(groups)

    @cached_property
    def views(self) -> Mapping[str, dict[str, Any]]:
        """Recipes of the views that at least one teacher has outputs for, by id, by slot."""
        seen = [view for name in self.teachers for view in self.views_of([name])]
        # those of teachers without logits
        seen += [view for name in self.features for view in self.views_of([], [name])]
        return MappingProxyType({view: self.manifest.views[view] for view in dict.fromkeys(seen)})

    @property
    def num_classes(self) -> int:
        """C of the first teacher, or the number of class names if there is none."""
        for group in self.teachers.values():
            return group.num_classes
        return len(self.class_names)

    def teacher(self, name: str) -> TeacherGroup:
        """Return the group of a teacher's logits.

        Raises:
            UsageError: There is no such teacher, it has no logits, or it is not sealed yet.
        """
        if name in self.teachers:
            return self.teachers[name]
        taps = [key for key, group in self.features.items() if group.teacher == name]
        if taps:
            what, got = f"teacher {name!r} has no logits", f"features alone: {first_of(taps)}"
            hint = "use objectives on features, for example match"
            raise UsageError(what, where=self.url, got=got, hint=hint)
        hint = nearest(name, self.teachers)
        raise UsageError(f"no teacher {name!r} in this cache", where=self.url, hint=hint)

    def tap(self, name: str) -> FeatureGroup:
        """Return the group of a tap.

        Args:
            name: ``<teacher>/<tap>``.

        Raises:
            UsageError: There is no such tap, or it is not sealed yet.
        """
        if name not in self.features:
            raise UsageError(
                f"no features {name!r} in this cache",
                where=self.url,
                hint=nearest(name, self.features)
                if self.features
                else "the cache has no features; run the same precompute command with --feature "
                f"{name.replace('/', '=', 1)} to add them",
            )
        return self.features[name]

    def table(self, name: str) -> NDArray[np.float32]:
        """Return a table, float32 (C, E), by its key in :attr:`tables`.

        Raises:
            UsageError: There is no such table, or it is not sealed yet.
            CacheDamaged: It is not the one that was committed.
        """
        if name not in self.tables:
            raise UsageError(
                f"no table {name!r} in this cache",
                where=self.url,
                hint=nearest(name, self.tables) if self.tables else "the cache has no tables",
            )
        group = self.tables[name]
        return group.decode(self._read(group.placement(NO_VIEW), [0], list(group.specs())))

    def views_of(self, teachers: Sequence[str], features: Sequence[str] = ()) -> list[str]:
        """Return the ids of the sealed views that all of these teachers and taps have."""
        groups: list[Group] = [self.teacher(name) for name in teachers]
        groups += [self.tap(name) for name in features]
        return [
            view
            for view in (groups[0].view_ids if groups else ())
            if all(f"{group.path}/{view}" in self.revision.ledgers for group in groups)
        ]

    @cached_property
    def withdrawn(self) -> frozenset[str]:
        """Keys of the images that were withdrawn."""
        return read_withdrawn(self._location, self.revision.metadata)

    @cached_property
    def samples(self) -> Samples:
        """Samples of all rows, read once: about 60 bytes and a key for each row."""
        arrays = self._read_samples(self.units(), self._sample_names)
        whole = {name: array[: self.rows_end] for name, array in arrays.items()}
        return samples_from(whole, 0, self.withdrawn)

    @property
    def rows_end(self) -> int:
        """One past the last row."""
        return self.revision.rows_end

    def units(self) -> list[int]:
        """Return the numbers of the units that contain rows, ascending."""
        return sample_placement(self.manifest).units(self.revision.segments, self.unit_rows)

    def all_samples(self) -> Iterator[Samples]:
        """Yield the samples unit by unit, one of them in memory at a time."""
        for unit in self.units():
            yield self.samples_of(unit)

    def sample_unit(self, name: str, unit: int) -> NDArray[Any]:
        """Return one array of the samples of a unit, (U, ...).

        Args:
            name: ``digest``, ``label`` and so on.
            unit: Its number.
        """
        assert name in self._sample_names
        return self._read_samples([unit], [name])[name]

    def label_sets_unit(self, unit: int) -> NDArray[np.int32]:
        """Return the number of classes of the rows of a unit, and the classes: (U, 1 + W)."""
        arrays = self._read_samples([unit], ["label_count", "label_ids"])
        return np.column_stack([arrays["label_count"], arrays["label_ids"]])

    def readable_unit(self, unit: int) -> NDArray[np.bool_]:
        """Return which rows of a unit are readable images that were not withdrawn, bool (U,)."""
        if not self.withdrawn:
            readable: NDArray[np.bool_] = self.sample_unit("status", unit) == Status.OK
            return readable
        readable = np.zeros(self.unit_rows, dtype=np.bool_)
        readable[self.samples_of(unit).readable - unit * self.unit_rows] = True
        return readable

    def samples_of(self, unit: int) -> Samples:
        """Return the samples of one unit."""
        arrays = self._read_samples([unit], self._sample_names)
        return samples_from(arrays, unit * self.unit_rows, self.withdrawn)

    @cached_property
    def _sample_names(self) -> tuple[str, ...]:
        """Names of the arrays of the samples; their metadata are checked once."""
        self._check_metadata(SAMPLES, names := tuple(sample_placement(self.manifest).specs))
        return names

    def read(
        self, name: str, view_id: str, start: int, stop: int, arrays: Sequence[str] | None = None
    ) -> Encoded:
        """Read encoded rows [start, stop) of one view of a group, (stop - start, ...).

        Whole units are read fastest; see :meth:`read_units`.
        """
        group = self.groups.get(name) or self.teacher(name)
        units = units_of(start, stop, group.unit_rows)
        read = self.read_units(name, view_id, units, arrays)
        skipped = start - units.start * group.unit_rows
        return {name: array[skipped : skipped + stop - start] for name, array in read.items()}

    def read_units(
        self, name: str, view_id: str, units: Sequence[int], arrays: Sequence[str] | None = None
    ) -> Encoded:
        """Read whole units of one view of a group, one after the other, several shards at a time.

        Args:
            name: A teacher's, or that of one of its taps: a key of :attr:`groups`.
            view_id: The view.
            units: Numbers of the group's own units, in the order wanted.
            arrays: Which arrays; all by default.

        Returns:
            Arrays by name, (len(units) * rows of a unit, ...), as the group encodes them.

        Raises:
            CacheDamaged: An object of these units is not the one that was committed.
        """
        group = self.groups.get(name) or self.teacher(name)
        return self._read(group.placement(view_id), units, arrays or list(group.specs()))

    def _read(self, placement: Placement, units: Sequence[int], names: Sequence[str]) -> Encoded:
        ledger = self._ledger(placement)
        commits = self._commits(ledger, units)
        return self._objects.read(placement, commits, names, ledger.commits.values())

    def _read_samples(self, units: Sequence[int], names: Sequence[str]) -> Encoded:
        read = self._read(sample_placement(self.manifest), units, names)
        fault = sample_fault(read, len(self.class_names))
        if fault is not None:
            what = "the arrays of the samples contain impossible values"
            raise CacheDamaged(what, where=self.url, got=fault)
        return read

    def partners(self, view_id: str) -> NDArray[np.int64]:
        """Return the row that each row is mixed with in a view that mixes.

        Returns:
            int64 (N,): a row of the same block; the row itself where it is not mixed, -1 where
            there is no readable image.

        Raises:
            CacheDamaged: An object is missing or has another size, or the rows are not pairs.
        """
        found = np.full(self.rows_end, -1, dtype=np.int64)
        for unit in self.units():
            start = unit * self.unit_rows
            partners = self.unit_partners(view_id, unit)
            found[start : start + self.unit_rows] = partners[: self.rows_end - start]
        return found

    def unit_partners(self, view_id: str, unit: int) -> NDArray[np.int64]:
        """Return the partners of the rows of one unit, int64 (U,)."""
        placement = partner_placement(view_id, self.unit_rows)
        (stored,) = self._read(placement, [unit], list(placement.specs)).values()
        return partner_rows(view_id, unit, stored, self.readable_unit(unit))

    @cached_property
    def image_bytes(self) -> ImageBytes | None:
        """The images in the cache, by row; None if it contains none."""
        images = self.manifest.images
        return None if images is None else self._encoded(image_placement(images))

    @cached_property
    def squares(self) -> StoredSquares | None:
        """The rendered views in the cache; None if it contains none."""
        known = self.manifest.squares
        return None if known is None else StoredSquares(known.side, self._square_bytes, self.url)

    def _square_bytes(self, view_id: str) -> ImageBytes:
        return self._encoded(square_placement(view_id, self.manifest), f"{view_id}/")

    def _encoded(self, placement: Placement, folder: str = "") -> ImageBytes:
        self._check_metadata(placement.holder, (n.removeprefix(folder) for n in placement.specs))
        ledger = self._ledger(placement)
        return ImageBytes.of(self._location, placement, ledger, self._copies, folder)

    def probes(self) -> list[FingerprintsDocument]:
        """Return the documents of view fingerprints, oldest first.

        Raises:
            CacheDamaged: One is missing or malformed, or has changed.
        """
        return read_fingerprints(self._location, self.revision.metadata)

    def _ledger(self, placement: Placement) -> Ledger:
        """Return a ledger; the last one of each group is kept, since views are read in turn."""
        kept = self._ledgers.get(placement.group)
        if kept is None or kept.view != placement.view:
            units = placement.units(self.revision.segments, self.unit_rows)
            kept = read_ledger(self._location, self.revision, placement, units)
            self._ledgers[placement.group] = kept
        return kept

    def _commits(self, ledger: Ledger, units: Iterable[int]) -> list[Commit]:
        """Return the commits of units, all of which must exist."""
        commits = []
        for unit in units:
            if unit not in ledger.commits:
                raise CacheDamaged(
                    "the ledger of a view does not list a unit of the cache",
                    where=self.url,
                    got=f"{ledger.group}, view {ledger.view}, unit {unit}",
                )
            commits.append(ledger.commits[unit])
        return commits

    def _check_metadata(self, group: str, arrays: Iterable[str]) -> None:
        """Compare the documents of a group with those that were sealed."""
        keys = [f"{path}/zarr.json" for path in (group, *(f"{group}/{name}" for name in arrays))]
        known = [key for key in keys if key in self.revision.metadata]
        for fault in metadata_faults(self._location, self.revision, known):
            raise fault.error(self._location)


def open_cache(
    url: str | os.PathLike[str] | Location,
    *,
    local_copy: str | os.PathLike[str] | None = None,
    local_copy_bytes: int = DEFAULT_COPY_BYTES,
    revision: str | None = None,
) -> Cache:
    """Open a sealed cache for reading.

    Args:
        url: A folder, or a URL; see :mod:`logitcache.cache.store.base`.
        local_copy: Folder of the local copies of a remote cache's shards; a folder below the user's
            cache folder by default.
        local_copy_bytes: Largest size of that folder; 0 to keep no copies.
        revision: sha256 of the revision that it must have, or the first 12 digits or more.

    Raises:
        CacheError: There is no cache.
        UnsupportedFormat: It was written by a newer logitcache.
        CacheUnsealed: It was never sealed.
        CacheDamaged: Its manifest is not the one that was sealed, or it has another revision.
    """
    location = locate(url)
    manifest = read_manifest(location)
    check_revision(manifest, revision, location)
    if manifest.revision is None:
        raise CacheUnsealed(
            "this cache is not finished: it has no sealed revision",
            where=location,
            hint="run the same precompute command again; logitcache status shows what is missing",
        )
    sealed = read_revision(location, manifest.revision)
    check_segments(location, manifest, sealed)
    fault = manifest_fault(location, manifest, sealed)
    if fault is not None:
        raise fault.error(location)
    copies = None
    if location.is_distant and local_copy_bytes > 0:
        copies = ShardCache(Path(local_copy or default_copies()), local_copy_bytes)
    return Cache(location, manifest, sealed, copies)
