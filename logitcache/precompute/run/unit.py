"""Computation of one item: render a view of a block, run the teachers, write whole units.

The renderer and the teachers come in through Protocols, so this module needs neither torch nor an
image, and a test can kill it a hundred times in a minute.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

import numpy as np

from logitcache.cache.format.names import Status
from logitcache.cache.format.placement import units_of
from logitcache.encoding.arrays import filled
from logitcache.encoding.logits import non_finite_rows
from logitcache.errors import NonFiniteLogits, UnreadableImage
from logitcache.precompute.plan.worklist import Block
from logitcache.precompute.run.compared_rows import FidelitySample
from logitcache.views.tokens import kept_tokens

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

__all__ = ["Batch", "Block", "Renderer", "Teachers", "compute_item"]


@dataclass
class Batch:
    """A canonical batch, rendered.

    Attributes:
        start: Row of its first position.
        pixels: uint8 (B, 3, S, S) by side S; zeros in positions without a readable image.
        failures: By position: why an image could not be read.
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
    """Teachers that map pixels to logits and features."""

    def answer(
        self,
        pixels: Mapping[int, NDArray[np.uint8]],
        batches: Mapping[str, int],
        kept_patches: Mapping[str, NDArray[np.int64] | None],
    ) -> Mapping[str, NDArray[np.float32]]:
        """Return logits (B, C) and kept features (B, ...) by name of the group.

        See :class:`logitcache.teachers.ensemble.Ensemble`.
        """
        ...


@dataclass(frozen=True)
class Work:
    """Everything an item needs besides itself.

    Attributes:
        writer: The cache.
        renderer: Rows to pixels.
        teachers: Pixels to logits.
        groups: What is requested: teacher outputs and taps, by name.
        conditions: Of each group, by name.
        views: By id, to draw which tokens are kept.
        batch_rows: Positions rendered at a time; every canonical batch divides it.
        skip_bad_images: Whether an unreadable image is marked rather than an error.
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
    """Compute one item; each unit is committed as soon as it is whole.

    Outputs are encoded and written in the background, in order, while the next ones are computed:
    those of this item and, since it returns before the last are written, of the next.

    Args:
        work: What the item needs.
        item: What is missing.
        block: Its rows; statuses, digests and sizes are filled in if the samples are missing.
        background: What encodes and writes.

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
        outputs = work.teachers.answer(batch.pixels, sizes, kept_patches)
        for name in names:
            # numpy and blosc release the interpreter lock, so this overlaps with the next forward
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
    """Return which patches of each position are kept; None for outputs, and where all are."""
    kept = work.groups[name].kept_patches
    if kept is None:
        return None
    offset = batch.start - block.start
    hashes = block.hashes[offset : offset + work.batch_rows]
    return kept_tokens(work.views[item.view_id], hashes, *kept)


def _starts(work: Work, item: WorkItem, block: Block) -> list[int]:
    """Return the rows at which batches start; batches of padding alone are left out."""
    wanted = []
    for offset in range(0, len(block.indices), work.batch_rows):
        rows = slice(offset, offset + work.batch_rows)
        if (block.indices[rows] >= 0).any() and _is_wanted(work, item, block.start + offset):
            wanted.append(block.start + offset)
    return wanted


def _is_wanted(work: Work, item: WorkItem, row: int) -> bool:
    if item.samples:
        return True
    for name, units in item.units.items():
        touched = units_of(row, row + work.batch_rows, work.groups[name].unit_rows)
        if not set(units).isdisjoint(touched):
            return True
    return False


def _note_failures(work: Work, item: WorkItem, block: Block, batch: Batch) -> None:
    """Mark unreadable images, or stop at the first one."""
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
    """The units of one group within an item, filled batch by batch."""

    def __init__(self, work: Work, name: str, item: WorkItem, block: Block) -> None:
        self._work, self._name, self._item, self._block = work, name, item, block
        self._group = work.groups[name]
        self._wanted = frozenset(item.units[name])
        self._missing = set(self._wanted)
        self._arrays: dict[int, Encoded] = {}
        self._sample = FidelitySample(work.writer.manifest, self._group, item.view_id)

    def wants(self, row: int) -> bool:
        """Return whether some of the batch that starts at this row belongs to a missing unit."""
        touched = units_of(row, row + self._work.batch_rows, self._group.unit_rows)
        return not self._wanted.isdisjoint(touched)

    def add(self, row: int, answers_B: NDArray[np.float32]) -> None:
        """Encode a batch into its units, of which it may fill several."""
        rows = self._group.unit_rows
        for start in range(0, len(answers_B), min(rows, len(answers_B))):
            if (row + start) // rows in self._missing:
                self._add(row + start, answers_B[start : start + rows])

    def _add(self, row: int, answers_B: NDArray[np.float32]) -> None:
        """Encode rows into their unit; write earlier units that are whole by now."""
        unit = row // self._group.unit_rows
        # with the samples of the block it has to wait: no output is committed before its image
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
        """Write all the units that are left, those of padding alone included."""
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
                f"teacher {self._name!r} returned NaN or infinity for {len(bad)} images",
                where=f"view {self._item.view_id}, {keys}",
                hint="try --precision float32, or check its weights; no part of this unit is "
                "committed",
            )
        return self._group.encode(answers_N, self._block.labels[offsets_N])
