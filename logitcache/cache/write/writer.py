"""Writer of a cache: declare, commit units, seal. Committed data are never rewritten.

The process may be interrupted at any time. Groups are written before the root manifest lists them,
shards before their commit, and all that a revision lists before the root points at it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from logitcache.cache.format.arrays import create_group, write_attributes
from logitcache.cache.format.data_arrays import (
    create_data_arrays,
    create_view_arrays,
    data_placements,
    resize_data_arrays,
)
from logitcache.cache.format.group import needed_units
from logitcache.cache.format.groups import (
    Group,
    RowGroup,
    TeacherGroup,
    check_group,
    create_group_arrays,
    group_names,
    groups_of,
    read_group,
    resize_group_arrays,
    row_groups,
)
from logitcache.cache.format.images import image_placement
from logitcache.cache.format.ledger import committed_units, read_commits
from logitcache.cache.format.manifest import (
    DataRecord,
    DerivationRecord,
    ImagesRecord,
    Manifest,
    RevisionPointer,
    Segment,
    SquaresRecord,
    TeacherRecord,
    read_manifest,
)
from logitcache.cache.format.names import (
    FORMAT,
    FORMATS,
    IMAGES,
    STORED_VIEWS,
    VIEWS,
)
from logitcache.cache.format.partners import encode_partners, partner_placement
from logitcache.cache.format.placement import Placement, units_of
from logitcache.cache.format.samples import (
    Samples,
    check_key_bytes,
    sample_fault,
    sample_placement,
    samples_from,
)
from logitcache.cache.format.squares import square_arrays, square_placement
from logitcache.cache.format.view_requirements import with_views
from logitcache.cache.read.exclusions import read_withdrawn
from logitcache.cache.read.objects import CommittedObjects
from logitcache.cache.store.zarr_store import RecordingStore
from logitcache.cache.write.encoding_losses import with_measurements
from logitcache.cache.write.seal import metadata_keys, write_reseal, write_seal
from logitcache.cache.write.unit_commit import Conditions, commit_unit
from logitcache.errors import CacheDamaged, CacheError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from logitcache.cache.format.ledger import Commit
    from logitcache.cache.store.base import Location
    from logitcache.encoding.arrays import Encoded

__all__ = ["CacheWriter"]


class CacheWriter:
    """The writing side of one cache.

    Args:
        location: Location of the cache.
        manifest: Its manifest.

    Attributes:
        withdrawn: Keys of the images that were withdrawn.
        recorded: Commits of units before they were damaged, by (group, view, unit): samples and
            partners must be the same again, and a unit with the same shards keeps its commit.
    """

    def __init__(self, location: Location, manifest: Manifest) -> None:
        self.location = location
        self.manifest = manifest
        self.withdrawn = read_withdrawn(location)
        self.recorded: dict[tuple[str, str, int], Commit] = {}
        self._store = RecordingStore(location)
        self._objects = CommittedObjects(location)

    @classmethod
    def create(
        cls,
        location: Location,
        *,
        unit_rows: int,
        segment: Segment,
        data: DataRecord,
        versions: Mapping[str, str],
        derived_from: DerivationRecord | None = None,
        images: ImagesRecord | None = None,
        squares: SquaresRecord | None = None,
    ) -> CacheWriter:
        """Start a cache for the rows of one segment.

        Raises:
            CacheError: The location is not empty.
        """
        if not location.is_empty():
            what = "this folder is neither a cache nor empty"
            hint = "choose an empty folder, or remove what is in it"
            raise CacheError(what, where=location, hint=hint)
        manifest = Manifest(
            # the lowest that can describe the cache; only fields that are set are written
            format=FORMATS[-1] if data.required else FORMAT,
            **({"requires": data.required} if data.required else {}),
            unit_rows=unit_rows,
            segments=(segment,),
            data=data,
            views={},
            teachers={},
            versions=dict(versions),
            revision=None,
        )
        if derived_from is not None:
            manifest = manifest.changed(derived_from=derived_from)
        if images is not None:
            manifest = manifest.changed(images=images).requiring(IMAGES)
        if squares is not None:
            manifest = manifest.changed(squares=squares).requiring(STORED_VIEWS)
        writer = cls(location, manifest)
        create_group(writer._store, "", manifest.to_json())
        create_data_arrays(location, writer._store, manifest)
        return writer

    @classmethod
    def open(cls, location: Location) -> CacheWriter:
        """Open a cache to extend it."""
        writer = cls(location, read_manifest(location))
        create_data_arrays(location, writer._store, writer.manifest)
        return writer

    def add_segment(self, segment: Segment) -> None:
        """Extend all arrays by the rows of a segment."""
        manifest = self.manifest.changed(segments=(*self.manifest.segments, segment))
        resize_data_arrays(self._store, self.manifest, manifest)
        for group in self.groups().values():
            resize_group_arrays(self._store, manifest, group)
        self.publish(manifest)

    def add_views(self, recipes: Mapping[str, dict[str, Any]]) -> None:
        """Declare views by id; known ones are left as they are."""
        manifest = with_views(self.manifest, {**recipes, **self.manifest.views})
        if manifest.views == self.manifest.views:
            return
        create_view_arrays(self._store, self.manifest, manifest)
        self.publish(manifest)

    def add_teacher(self, record: TeacherRecord, group: TeacherGroup) -> None:
        """Declare a teacher and make its arrays.

        Raises:
            CacheError: Committed units exist that the manifest does not list.
        """
        self._create(group)
        teachers = {**self.manifest.teachers, group.name: record}
        self.publish(self.manifest.changed(teachers=teachers).requiring(*group.requirements))

    def add_group(self, group: Group) -> None:
        """Declare a tap or a table of a declared teacher and make its arrays.

        Raises:
            CacheError: Committed units exist that the manifest does not list.
        """
        self._create(group)
        record = self.manifest.teachers[group.teacher]
        # the record lists the groups of each kind in the field of that name
        names = (*getattr(record, group.kind), group.name.rpartition("/")[2])
        changed = record.model_copy(update={group.kind: names})
        manifest = self.manifest.changed(
            teachers={**self.manifest.teachers, group.teacher: changed}
        )
        self.publish(manifest.requiring(*group.requirements))

    def extend_group(self, name: str, view_ids: Sequence[str]) -> None:
        """Give a group slots for more views."""
        group = self.row_groups()[name]
        new = [view_id for view_id in view_ids if view_id not in group.view_ids]
        if not new:
            return
        group = replace(group, slots=(*group.slots, *new))
        resize_group_arrays(self._store, self.manifest, group)
        write_attributes(self._store, group.path, group.to_json())

    def refresh(self) -> None:
        """Read the manifest again: another run may have declared or sealed something."""
        self.manifest = read_manifest(self.location)

    def groups(self) -> dict[str, Group]:
        """Return all declared groups by name: each teacher, then its taps."""
        groups = {name: read_group(self.location, name) for name in group_names(self.manifest)}
        for group in groups.values():
            check_group(group, self.manifest, self.location)
        return groups

    def teachers(self) -> dict[str, TeacherGroup]:
        """Return the groups of all declared teacher outputs."""
        return groups_of(self.groups(), TeacherGroup)

    def row_groups(self) -> dict[str, RowGroup]:
        """Return all declared groups with rows, by name."""
        return row_groups(self.groups())

    def needed_units(self, unit_rows: int) -> set[int]:
        """Return the units of that size that cover all segments.

        Raises:
            CacheError: There are too many: the manifest or the group is wrong.
        """
        return needed_units(self.manifest, unit_rows, self.location)

    def has_commits(self) -> bool:
        """Return whether anything is committed; arrays of images are committed first."""
        data = data_placements(self.manifest)
        return any(committed_units(self.location, one.group, one.view) for one in data)

    def missing_units(self, group: str, view: str, unit_rows: int) -> set[int]:
        """Return the units without a commit."""
        return self.needed_units(unit_rows) - committed_units(self.location, group, view)

    def write_samples(self, unit: int, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Write and commit one unit of the samples: arrays by name, ``unit_rows`` rows each.

        Raises:
            DataError: The names of images are longer than readers accept.
        """
        check_key_bytes(arrays["key"])
        self._commit(sample_placement(self.manifest), unit, arrays, Conditions())

    def write_images(self, unit: int, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Write and commit one unit of the images, unless that is done."""
        assert self.manifest.images is not None
        self._commit(image_placement(self.manifest.images), unit, arrays, Conditions())

    def write_squares(self, view_id: str, unit: int, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Write and commit one unit of the squares of a view, unless that is done.

        Args:
            view_id: A view that is not derived.
            unit: Number of the unit.
            arrays: Rows of the unit by name of the array in :data:`.SQUARE_ARRAYS`.
        """
        placement = square_placement(view_id, self.manifest)
        self._commit(placement, unit, square_arrays(view_id, arrays), Conditions())

    def write_partners(self, view_id: str, unit: int, offsets_U: NDArray[np.int64]) -> None:
        """Write and commit the mixing partners of the rows of a block, unless that is done.

        Args:
            view_id: A view that mixes.
            unit: Number of the block.
            offsets_U: Offset of each row's partner in the block, int64; -1 where there is none.
        """
        arrays = {f"{view_id}/partner": encode_partners(offsets_U)}
        placement = partner_placement(view_id, self.manifest.unit_rows)
        self._commit(placement, unit, arrays, Conditions())

    def read_partners(self, view_id: str, unit: int) -> NDArray[np.int64] | None:
        """Return the committed offsets of a unit with their fill value; None before the commit."""
        if unit not in committed_units(self.location, VIEWS, view_id):
            return None
        placement = partner_placement(view_id, self.manifest.unit_rows)
        (stored,) = self._read(placement, [unit], list(placement.specs)).values()
        offsets: NDArray[np.int64] = stored.astype("int64")
        return offsets

    def write_unit(
        self,
        group: Group,
        view_id: str,
        unit: int,
        arrays: Mapping[str, NDArray[Any]],
        conditions: Conditions,
        measured: Mapping[str, float] | None = None,
    ) -> None:
        """Write and commit one unit of one view of a group.

        Args:
            group: The group.
            view_id: The view.
            unit: Number of the unit.
            arrays: Rows of the unit by name of the array.
            conditions: Conditions under which it was computed.
            measured: Sums of the encoding losses over a sample of its rows, by name.
        """
        self._commit(group.placement(view_id), unit, arrays, conditions, measured)

    def read_samples(self, start: int, stop: int) -> Samples:
        """Read rows of the samples, whose units must be committed."""
        placement = sample_placement(self.manifest)
        arrays = self._read_rows(placement, start, stop, list(placement.specs))
        fault = sample_fault(arrays, len(self.manifest.data.class_names))
        if fault is not None:
            what = "the arrays of the samples contain impossible values"
            raise CacheDamaged(what, where=self.location, got=fault)
        return samples_from(arrays, start, self.withdrawn)

    def read_array(self, placement: Placement, name: str, start: int, stop: int) -> NDArray[Any]:
        """Read rows of one array of samples or images, whose units must be committed."""
        return self._read_rows(placement, start, stop, [name])[name]

    def read_rows(
        self, group: Group, view_id: str, start: int, stop: int, arrays: Sequence[str]
    ) -> Encoded:
        """Read rows of a group, whose units must be committed."""
        return self._read_rows(group.placement(view_id), start, stop, arrays)

    def _read_rows(
        self, placement: Placement, start: int, stop: int, names: Sequence[str]
    ) -> Encoded:
        units = units_of(start, stop, placement.unit_rows)
        skipped = start - units.start * placement.unit_rows
        read = self._read(placement, units, names)
        return {name: array[skipped : skipped + stop - start] for name, array in read.items()}

    def _read(self, placement: Placement, units: Sequence[int], names: Sequence[str]) -> Encoded:
        """Read whole units, each compared with its commit: the cache may be untrusted."""
        commits: dict[int, Commit] = {}
        for unit in units:
            commits |= read_commits(self.location, placement.group, placement.view, [unit])
            known = self.recorded.get((placement.group, placement.view, unit))
            if unit not in commits and known is not None:
                commits[unit] = known
            if unit not in commits:
                raise CacheDamaged(
                    "a unit is not committed",
                    where=f"{self.location}, {placement.group}, view {placement.view}",
                    got=f"unit {unit}",
                )
        placement.check(commits, str(self.location))
        return self._objects.read(placement, [commits[unit] for unit in units], names)

    def missing(self) -> dict[str, int]:
        """Return the numbers of missing units by ``<group>/<view>``; empty if none are."""
        missing = {}
        for (group, view), units in self._required().items():
            count = len(units - committed_units(self.location, group, view))
            if count:
                missing[f"{group}/{view}"] = count
        return missing

    def seal(
        self,
        fingerprint: str,
        accuracy: Mapping[str, Mapping[str, float]],
        *,
        rewritten: Collection[tuple[str, str]] = (),
    ) -> RevisionPointer:
        """Seal everything that is declared.

        Args:
            fingerprint: SHA-256 over the keys and digests of all rows.
            accuracy: Top-1 accuracy by teacher and view id.
            rewritten: (group, view) with units that a repair computed again.

        Raises:
            CacheError: A unit is missing.
        """
        missing = self.missing()
        if missing:
            raise CacheError(
                "the cache cannot be sealed: units are missing",
                where=self.location,
                got=missing,
                hint="run the same precompute command again to compute them",
            )
        groups = self.row_groups().values()
        manifest = with_measurements(self.location, self.manifest, groups, fingerprint, accuracy)
        placements = data_placements(self.manifest, self._seen())
        metadata = metadata_keys(self.location, placements, self.groups().values())
        pointer = write_seal(self.location, manifest, self._required(), metadata, rewritten)
        if pointer != manifest.revision:
            self.publish(manifest.changed(revision=pointer))
        return pointer

    def reseal(self, rewritten: Collection[tuple[str, str]]) -> RevisionPointer:
        """Seal the contents of the last revision again, with commits that a repair wrote again.

        Later declarations stay unsealed.
        """
        pointer = write_reseal(self.location, self.manifest, rewritten)
        self.publish(self.manifest.changed(revision=pointer))
        return pointer

    def publish(self, manifest: Manifest) -> None:
        """Write the root manifest."""
        write_attributes(self._store, "", manifest.to_json())
        self.manifest = manifest

    def _required(self) -> dict[tuple[str, str], set[int]]:
        """Return all units that the declarations require, by group and view."""
        placements = data_placements(self.manifest, self._seen())
        required = {(p.group, p.view): self.needed_units(p.unit_rows) for p in placements}
        for group in self.groups().values():
            units = group.needed_units(self.manifest)
            required |= {(group.path, view): units for view in group.ledger_views}
        return required

    def _seen(self) -> set[str]:
        """Return the views that a teacher sees."""
        return {view for group in self.groups().values() for view in group.view_ids}

    def _create(self, group: Group) -> None:
        if any(committed_units(self.location, group.path, view) for view in group.ledger_views):
            raise CacheError(
                "a teacher has committed units, but the manifest does not list it",
                where=f"{self.location}/commits/{group.path}",
                hint="restore the manifest by logitcache repair, or choose another name",
            )
        create_group_arrays(self._store, self.manifest, group)

    def _commit(
        self,
        placement: Placement,
        unit: int,
        arrays: Mapping[str, NDArray[Any]],
        conditions: Conditions,
        measured: Mapping[str, float] | None = None,
    ) -> None:
        recorded = self.recorded.get((placement.group, placement.view, unit))
        commit_unit(
            self.location, self._store, placement, unit, arrays, conditions, measured, recorded
        )
