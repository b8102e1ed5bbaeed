"""Plan of a run: declarations, checks, and the units to compute.

Everything that could make an output wrong is compared before the first forward pass: images by key
and size, teachers by their locks, label spaces, encodings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from logitcache.cache.format.manifest import DataRecord, read_manifest
from logitcache.cache.format.names import (
    NO_VIEW,
    SAMPLES,
    Status,
    check_new_name,
    default_unit_rows,
)
from logitcache.cache.format.samples import label_width
from logitcache.cache.store.open import locate
from logitcache.cache.verify.restore import rewrite_unsealed
from logitcache.cache.write.drop import finish_drops
from logitcache.cache.write.writer import CacheWriter
from logitcache.data.decode import DECODING
from logitcache.data.identity import key_hash, row_order
from logitcache.data.listing import LISTING
from logitcache.data.packing import packing_of
from logitcache.errors import UsageError
from logitcache.label_sets import label_sets_of
from logitcache.precompute.environment import versions
from logitcache.precompute.plan.declaration import (
    check_classes,
    declare_headless,
    declare_teacher,
)
from logitcache.precompute.plan.encodings import (
    choice_note,
    choose_encodings,
    stored_encoding,
)
from logitcache.precompute.plan.layers import choose_taps, declare_taps, smallest_unit, write_tables
from logitcache.precompute.plan.packing import (
    images_as_stored,
    stored_records,
    stored_squares_of,
    with_side,
)
from logitcache.precompute.plan.rows import match_or_extend, match_rows, no_positions, segment_of
from logitcache.precompute.plan.worklist import Block, Missing, WorkItem, worklist
from logitcache.views.mix import match_partners

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from numpy.typing import NDArray

    from logitcache.cache.format.groups import RowGroup
    from logitcache.cache.read.stored_squares import StoredSquares
    from logitcache.cache.store.base import Location
    from logitcache.data.packing import ImagesConfig, PackingSource
    from logitcache.data.source import Source
    from logitcache.encoding.features import FeatureEncoding
    from logitcache.label_sets import LabelSets
    from logitcache.precompute.config import PrecomputeConfig
    from logitcache.precompute.plan.rows import Positions
    from logitcache.teachers.ensemble import Ensemble
    from logitcache.views.spec import View

__all__ = ["Plan", "create_cache", "join_plan", "make_plan", "sample_items"]

_UNKNOWN_ROW = -1
_READ_ROWS = 64


@dataclass(frozen=True)
class Plan:
    """Units to compute, and the cache that they are written to.

    Attributes:
        writer: Writer of the cache, with everything declared.
        source: Image set; if the cache contains images, these.
        originals: Images that are packed into the cache; None if it contains none, or all of them.
        indices: Position in the source of every row, int (rows,); -1 for rows without an image.
        views: Requested views by id.
        groups: Groups of the requested teachers and layers, by name.
        items: Missing items, in the order of the computation.
        notes: Notes for the user.
    """

    writer: CacheWriter
    source: Source
    indices: Positions
    views: Mapping[str, View]
    groups: Mapping[str, RowGroup]
    items: list[WorkItem]
    notes: list[str]
    originals: PackingSource | None = None

    @property
    def listed(self) -> Source:
        """Image set as every process lists it, before its images are stored."""
        return self.source if self.originals is None else self.originals

    @property
    def images(self) -> int:
        """Number of images to process, counted once per missing item: a view of a block."""
        return sum(self.images_of(item) for item in self.items)

    @property
    def work(self) -> str:
        """Description of what :attr:`images` consists of."""
        views = {item.view_id for item in self.items if item.units}
        shown = sum(self.images_of(item) for item in self.items if item.units)
        read = self.images - shown
        words = []
        if shown:
            where = "one view" if len(views) == 1 else f"{len(views)} views"
            words.append(f"{shown} images to run the teachers on, in {where}")
        if read:
            words.append(f"{read} images to read first, to find those that can be mixed")
        return "; ".join(words)

    def images_of(self, item: WorkItem) -> int:
        """Return the number of images of an item."""
        rows = self.writer.manifest.unit_rows
        return int((self.indices[item.block * rows : (item.block + 1) * rows] >= 0).sum())

    @property
    def decoding(self) -> int:
        """Version of the decoding table of the cache."""
        return self.writer.manifest.data.decoding

    @property
    def squares(self) -> StoredSquares | None:
        """The committed squares of the cache; None if it contains none."""
        return stored_squares_of(self.writer)

    @property
    def smallest_batch(self) -> int:
        """Images per batch if no teacher is run."""
        return min(_READ_ROWS, self.writer.manifest.unit_rows)

    def block(self, number: int) -> Block:
        """Return the rows of a block, from the cache if its samples are committed."""
        rows = self.writer.manifest.unit_rows
        start, stop = number * rows, (number + 1) * rows
        indices = self.indices[start:stop]
        here = indices >= 0
        labels = np.where(here, self.source.labels[indices], -1).astype(np.int32)
        if number not in self.writer.missing_units(SAMPLES, NO_VIEW, rows):
            known = self.writer.read_samples(start, stop)
            readable = np.where(known.status == Status.OK, indices, _UNKNOWN_ROW)
            return Block(
                start=start,
                indices=readable,
                keys=known.keys,
                hashes=known.hashes,
                labels=known.labels,
                status=known.status,
                digests=known.digests,
                sizes=known.sizes,
                label_sets=self._stored_as(known.label_sets),
            )
        sets = label_sets_of(self.source)
        keys = np.array([self.source.keys[i] if i >= 0 else "" for i in indices], dtype=object)
        return Block(
            start=start,
            indices=indices,
            keys=keys,
            hashes=_hashes(keys),
            labels=labels,
            status=np.where(here, Status.OK, Status.PADDING).astype(np.uint8),
            digests=np.zeros((rows, 16), dtype=np.uint8),
            sizes=np.zeros(rows, dtype=np.int64),
            label_sets=self._stored_as(None if sets is None else sets.take(indices)),
        )

    def _stored_as(self, sets: LabelSets | None) -> tuple[LabelSets, int] | None:
        """Return label sets with the width that the cache stores them in."""
        width = self.writer.manifest.data.label_width
        return None if sets is None or width is None else (sets, width)

    def partners(self, view: View, block: Block) -> NDArray[np.int64]:
        """Return the offset of each row's partner in the block, int64 (U,); -1 if it has none.

        Stored partners are used if there are any. A row whose partner was withdrawn is its own one.
        """
        readable = block.status == Status.OK
        own = np.arange(len(readable))
        stored = self.writer.read_partners(view.id, block.start // self.writer.manifest.unit_rows)
        if stored is None:
            offsets = own.copy()
            shown = own[readable]
            offsets[readable] = shown[match_partners(view.seed, view.draw, block.hashes[readable])]
        else:
            offsets = np.where(readable[np.minimum(stored, own[-1])], stored, own)
        return np.where(readable, offsets, -1)


def make_plan(config: PrecomputeConfig, source: Source, ensemble: Ensemble) -> Plan:
    """Open or create the cache, declare what is requested, and list what is missing.

    Raises:
        UsageError: Names, label spaces, encodings or sizes do not fit.
        DataMismatch: The cache was created from other images.
        CacheError: The location is not a cache, or the cache has another teacher of this name.
    """
    location = locate(config.cache)
    manifest = None if location.is_empty() else read_manifest(location)
    images = with_side(config.images, manifest, ensemble.sizes)
    config = config.model_copy(update={"images": images})
    known = () if manifest is None else manifest.teachers
    for name, member in ensemble.members.items():
        if name not in known:
            check_new_name(name, "teacher", [*known, *ensemble.members])
        check_classes(name, member, source)
    views = {view.id: view for view in config.views.views()}
    for view in views.values():
        view.check_sizes(ensemble.sizes)
    chosen = choose_encodings(config, source, ensemble, list(views.values()))
    notes = [choice_note(name, choice) for name, choice in chosen.items()]
    writer, indices, taps = _open_or_create(config, source, ensemble, notes)
    # views before the groups that have slots for them, so that no reader meets an unknown view
    writer.add_views({view_id: view.to_json() for view_id, view in views.items()})
    for name, member in ensemble.members.items():
        batch = smallest_unit(writer, name, taps, config.batch)
        if not member.has_logits:
            notes += declare_headless(writer, name, member, batch)
            continue
        choice = chosen.get(name)
        encoding = choice.encoding if choice else stored_encoding(config, writer, name, member)
        notes += declare_teacher(config, writer, name, member, encoding, list(views), batch)
    declare_taps(config, writer, taps, list(views))
    write_tables(config, writer, ensemble.members)
    declared = writer.row_groups()
    groups = {name: declared[name] for name in (*ensemble.with_logits, *taps)}
    return Plan(
        writer=writer,
        source=images_as_stored(source, writer, indices),
        originals=packing_of(source),
        indices=indices,
        views=views,
        groups=groups,
        items=_missing_items(writer, groups, views),
        notes=notes,
    )


def join_plan(config: PrecomputeConfig, source: Source, groups: Collection[str]) -> Plan:
    """Return the plan of a run that another process has started; nothing is declared or listed.

    Args:
        config: Configuration of the run.
        source: Image set, as this process lists it.
        groups: Names of the groups to write.

    Raises:
        DataMismatch: These are not the images of the cache.
    """
    writer = CacheWriter.open(locate(config.cache))
    known, indices = writer.row_groups(), match_rows(writer, source)
    return Plan(
        writer=writer,
        source=images_as_stored(source, writer, indices),
        originals=packing_of(source),
        indices=indices,
        views={view.id: view for view in config.views.views()},
        groups={name: known[name] for name in groups},
        items=[],
        notes=[],
    )


def _open_or_create(
    config: PrecomputeConfig, source: Source, ensemble: Ensemble, notes: list[str]
) -> tuple[CacheWriter, Positions, dict[str, FeatureEncoding]]:
    """Return the writer, the positions of its rows in the source, and the requested layers."""
    location = locate(config.cache)
    if location.is_empty():
        # networks are run first: one that is refused leaves no cache with the views of this run
        taps = choose_taps(config, {}, source, ensemble)
        return *create_cache(location, source, config.unit_rows, config.images), taps
    writer = CacheWriter.open(location)
    notes += rewrite_unsealed(writer)
    finish_drops(writer)
    location.sweep()
    if config.unit_rows is not None and config.unit_rows != writer.manifest.unit_rows:
        raise UsageError(
            "the number of rows per unit of an existing cache cannot be changed",
            where=location,
            expected=f"unit_rows {writer.manifest.unit_rows}",
            got=f"unit_rows {config.unit_rows}",
            hint="omit unit_rows, or create a new cache",
        )
    taps = choose_taps(config, writer.row_groups(), source, ensemble)
    return writer, match_or_extend(writer, source), taps


def create_cache(
    location: Location, source: Source, unit_rows: int | None, images: ImagesConfig | None
) -> tuple[CacheWriter, Positions]:
    """Create a cache for the images of a source, without teachers and views.

    Args:
        location: An empty location.
        source: The images.
        unit_rows: Rows per block; by default depending on the number of images.
        images: What is stored of them in it; None for nothing.

    Returns:
        Its writer, and the position in the source of every row; -1 for padding.
    """
    rows = row_order(source)
    unit_rows = default_unit_rows(len(rows), unit_rows)
    width = label_width(label_sets_of(source), len(source.class_names), source.description)
    writer = CacheWriter.create(
        location,
        unit_rows=unit_rows,
        segment=segment_of(source, rows, start=0),
        data=DataRecord(
            description=source.description,
            class_names=tuple(source.class_names),
            listing=LISTING,
            decoding=DECODING,
            # only fields that are set are written
            **({} if width is None else {"label_width": width}),
        ),
        versions=versions(),
        **stored_records(images, unit_rows),
    )
    writer.location.sweep()  # files of a run that was killed before it wrote the manifest
    indices = no_positions(writer.manifest.capacity, len(source.keys))
    indices[: len(rows)] = rows
    return writer, indices


def sample_items(writer: CacheWriter, view_id: str) -> list[WorkItem]:
    """Return the missing samples as items without units of teachers.

    Args:
        writer: Writer of the cache.
        view_id: The view in which images are decoded.
    """
    missing = writer.missing_units(SAMPLES, NO_VIEW, writer.manifest.unit_rows)
    return [WorkItem(view_id, block, samples=True) for block in sorted(missing)]


def _missing_items(
    writer: CacheWriter, groups: Mapping[str, RowGroup], views: Mapping[str, View]
) -> list[WorkItem]:
    rows = writer.manifest.unit_rows
    samples = writer.missing_units(SAMPLES, NO_VIEW, rows)
    missing = {
        name: Missing(
            group.unit_rows,
            {
                view: writer.missing_units(group.path, view, group.unit_rows)
                for view in group.view_ids
                if view in views
            },
        )
        for name, group in groups.items()
    }
    mixed = {view_id for view_id, view in views.items() if view.mixing is not None}
    return worklist(rows, list(views), samples, missing, mixed)


def _hashes(keys: NDArray[np.object_]) -> NDArray[np.uint64]:
    return np.array([key_hash(key) if key else 0 for key in keys], dtype=np.uint64)
