"""Computation of one item: render a view of a block, run the teachers, write complete units.

The renderer and the teachers are Protocols, so that this module needs neither torch nor images, and
tests can interrupt it a hundred times in a minute.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

import numpy as np

from logitcache.cache.format.names import Status, tap_of, teacher_of
from logitcache.cache.format.placement import units_of
from logitcache.encoding.arrays import filled
from logitcache.encoding.logits import non_finite_rows
from logitcache.errors import NonFiniteLogits, UnreadableImage
from logitcache.precompute.plan.worklist import Block
from logitcache.precompute.run.compared_rows import FidelitySample
from logitcache.views.tokens import kept_tokens, shown_patches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from numpy.typing import NDArray

    from logitcache.cache.format.groups import RowGroup
    from logitcache.cache.write.unit_commit import Conditions
    from logitcache.cache.write.writer import CacheWriter
    from logitcache.encoding.arrays import Encoded
    from logitcache.precompute.plan.worklist import WorkItem
    from logitcache.precompute.run.background import Background
    from logitcache.views.spec import View
    from logitcache.views.tokens import ShownPatches

__all__ = ["Batch", "Block", "Renderer", "Teachers", "compute_item"]


@dataclass
class Batch:
    """A batch of rendered rows.

    Attributes:
        start: First row.
        pixels: Pixels by side S, uint8 (B, 3, S, S); zeros for rows without a readable image.
        failures: Errors of images that could not be read, by position in the batch.
    """

    start: int
    pixels: Mapping[int, NDArray[np.uint8]]
    failures: Mapping[int, UnreadableImage]


class Renderer(Protocol):
    """Renderer of rows to pixels."""

    def batches(self, view_id: str, starts: Iterable[int], block: Block) -> Iterator[Batch]:
        """Render the batches that start at these rows, in order.

        The content digest and size of every image that is read go into the block.
        """
        ...


class Teachers(Protocol):
    """Teachers that map pixels, or some of the patches, to logits and features."""

    def start(
        self,
        pixels: Mapping[int, NDArray[np.uint8]],
        batches: Mapping[str, int],
        kept_patches: Mapping[str, NDArray[np.int64] | None],
        shown: ShownPatches | None = None,
    ) -> Mapping[str, Callable[[], NDArray[np.float32]]]:
        """Start forward passes; return functions that wait for their outputs, by group.

        Outputs are logits (B, C) and kept features (B, ...).

        See :class:`logitcache.teachers.ensemble.Ensemble`.
        """
        ...


@dataclass(frozen=True)
class Work:
    """Objects and settings that all items of a run share.

    Attributes:
        writer: Writer of the cache.
        renderer: Renderer of rows to pixels.
        teachers: Teachers that map pixels to logits and features.
        groups: Requested groups of teacher outputs and features, by name.
        conditions: Conditions recorded in the commits of each group, by name.
        views: Views by id; they determine which patches are shown and which are kept.
        batch_rows: Rows rendered at a time, a multiple of every canonical batch.
        skip_bad_images: Whether unreadable images are marked instead of being an error.
        after_batch: Called with the number of images of each batch; may raise to stop.
    """

    writer: CacheWriter
    renderer: Renderer
    teachers: Teachers
    groups: Mapping[str, RowGroup]
    conditions: Mapping[str, Conditions]
    views: Mapping[str, View]
    batch_rows: int
    skip_bad_images: bool
    after_batch: Callable[[int], None]


def compute_item(work: Work, item: WorkItem, block: Block, background: Background) -> None:
    """Compute one item; each unit is committed as soon as it is complete.

    Outputs are encoded and written in order by a background thread, while the next batches are
    computed; those of the next item, too, since the last units are written after the return.

    Args:
        work: Objects and settings of the run.
        item: Missing samples and units.
        block: Rows of the item; if its samples are missing, their status, digests and sizes are
            filled in.
        background: Thread that encodes and writes.

    Raises:
        UnreadableImage: An image cannot be decoded and bad images are errors.
        NonFiniteLogits: A teacher returned NaN or infinity.
    """
    open_units = {name: _OpenUnits(work, name, item, block) for name in item.units}
    starts = _starts(work, item, block)
    for batch in work.renderer.batches(item.view_id, starts, block):
        _note_failures(work, item, block, batch)
        names = [name for name, units in open_units.items() if units.wants(batch.start)]
        kept_patches = {name: _kept_tokens(work, item, block, batch, name) for name in names}
        sizes = {name: work.conditions[name].canonical_batch for name in names}
        shown = shown_patches(work.views[item.view_id], _hashes(work, block, batch))
        outputs = work.teachers.start(batch.pixels, sizes, kept_patches, shown)
        for name in names:
            # the background thread waits for the device, which has the next forward pass by then;
            # numpy and blosc release the interpreter lock, so encoding overlaps with it, too
            background.do(partial(open_units[name].add, batch.start, outputs[name]))
        work.after_batch(work.batch_rows)
    if item.samples:
        # after the last batch, which may have marked an unreadable image; before all outputs
        background.do(lambda: work.writer.write_samples(item.block, block.samples()))
    for units in open_units.values():
        background.do(units.write)


def _kept_tokens(
    work: Work, item: WorkItem, block: Block, batch: Batch, name: str
) -> NDArray[np.int64] | None:
    """Return the kept patches of each row, int64 (B, n); None for logits, and if all are kept."""
    kept = work.groups[name].kept_patches
    if kept is None:
        return None
    return kept_tokens(work.views[item.view_id], _hashes(work, block, batch), *kept)


def _hashes(work: Work, block: Block, batch: Batch) -> NDArray[np.uint64]:
    """Return the hashes of the keys of the rows of a batch."""
    offset = batch.start - block.start
    hashes: NDArray[np.uint64] = block.hashes[offset : offset + work.batch_rows]
    return hashes


def _starts(work: Work, item: WorkItem, block: Block) -> list[int]:
    """Return the first rows of the batches to render: those with an image and a missing unit."""
    wanted = []
    # images are read to be digested, unless they were packed just now
    read_all = item.samples and not block.digests.any()
    for offset in range(0, len(block.indices), work.batch_rows):
        row, rows = block.start + offset, slice(offset, offset + work.batch_rows)
        if (block.indices[rows] >= 0).any() and (read_all or _is_wanted(work, item, row)):
            wanted.append(row)
    return wanted


def _is_wanted(work: Work, item: WorkItem, row: int) -> bool:
    for name, units in item.units.items():
        touched = units_of(row, row + work.batch_rows, work.groups[name].unit_rows)
        if not set(units).isdisjoint(touched):
            return True
    return False


def _note_failures(work: Work, item: WorkItem, block: Block, batch: Batch) -> None:
    """Mark unreadable images, or raise an error for the first one."""
    for position, error in sorted(batch.failures.items()):
        offset = batch.start - block.start + position
        if not (work.skip_bad_images and item.samples):
            raise UnreadableImage(
                error.what,
                where=block.keys[offset],
                got=error.got,
                hint="fix or remove the file, or pass --on-bad-image skip",
            )
        block.status[offset] = Status.UNREADABLE


class _OpenUnits:
    """Units of one group in an item, filled batch by batch."""

    def __init__(self, work: Work, name: str, item: WorkItem, block: Block) -> None:
        self._work, self._name, self._item, self._block = work, name, item, block
        self._group = work.groups[name]
        self._wanted = frozenset(item.units[name])
        self._missing = set(self._wanted)
        self._arrays: dict[int, Encoded] = {}
        self._sample = FidelitySample(work.writer.manifest, self._group, item.view_id)

    def wants(self, row: int) -> bool:
        """Return whether the batch that starts at this row has rows of a missing unit."""
        touched = units_of(row, row + self._work.batch_rows, self._group.unit_rows)
        return not self._wanted.isdisjoint(touched)

    def add(self, row: int, pending: Callable[[], NDArray[np.float32]]) -> None:
        """Wait for a batch of outputs and encode it into the units that it overlaps."""
        answers_B, rows = pending(), self._group.unit_rows
        for start in range(0, len(answers_B), min(rows, len(answers_B))):
            if (row + start) // rows in self._missing:
                self._add(row + start, answers_B[start : start + rows])

    def _add(self, row: int, answers_B: NDArray[np.float32]) -> None:
        """Encode rows into their unit; write earlier units, which are complete by now."""
        unit = row // self._group.unit_rows
        # if the item writes samples, units wait: no output is committed before its image
        if not self._item.samples:
            self._write_before(unit)
        arrays = self._arrays.setdefault(unit, filled(self._group.specs(), self._group.unit_rows))
        offset = row - self._block.start
        rows = slice(offset, offset + len(answers_B))
        readable = np.flatnonzero(self._block.status[rows] == Status.OK)
        if not len(readable):
            return
        encoded = self._encode(answers_B[readable], offset + readable)
        target = row - unit * self._group.unit_rows + readable
        self._sample.add(unit, target, answers_B[readable], encoded)
        for array, content in encoded.items():
            arrays[array][target] = content

    def write(self) -> None:
        """Write all remaining units, including those that only have padding."""
        for unit in sorted(self._missing - self._arrays.keys()):
            self._arrays[unit] = filled(self._group.specs(), self._group.unit_rows)
        self._write_before(max(self._arrays, default=0) + 1)

    def _write_before(self, unit: int) -> None:
        for whole in sorted(number for number in self._arrays if number < unit):
            arrays = self._arrays.pop(whole)
            self._missing.discard(whole)
            self._work.writer.write_unit(
                self._group,
                self._item.view_id,
                whole,
                arrays,
                self._work.conditions[self._name],
                self._sample.take(whole),
            )

    def _encode(self, answers_N: NDArray[np.float32], offsets_N: NDArray[np.int64]) -> Encoded:
        bad = non_finite_rows(answers_N)
        if len(bad):
            keys = ", ".join(self._block.keys[offsets_N[bad[:3]]])
            raise NonFiniteLogits(
                f"{_description(self._name)} returned NaN or infinity for {len(bad)} images",
                where=f"view {self._item.view_id}, {keys}",
                hint="try --precision float32, or check the weights; this unit is not committed, "
                "earlier ones are intact",
            )
        return self._group.encode(answers_N, self._block.labels[offsets_N])


def _description(group: str) -> str:
    """Return the teacher, or the layer of a teacher, that a group belongs to."""
    tap = tap_of(group)
    return f"teacher {teacher_of(group)!r}" + ("" if tap is None else f", layer {tap!r},")
