"""Rendered views in the cache: rendered and committed first, then shown to the teachers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from logitcache.cache.format.images import joined_images
from logitcache.cache.format.names import SQUARES, Status
from logitcache.cache.format.placement import units_of
from logitcache.cache.format.squares import square_placement
from logitcache.data.identity import content_digest
from logitcache.data.packing import encode_jpeg
from logitcache.precompute.run.source_renderer import SourceRenderer
from logitcache.views.spec import View, parse_view
from logitcache.views.stored import finishing, stored_part, stored_under

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from logitcache.cache.read.stored_squares import StoredSquares
    from logitcache.cache.write.writer import CacheWriter
    from logitcache.data.source import Source
    from logitcache.precompute.plan.plan import Plan
    from logitcache.precompute.plan.worklist import Block
    from logitcache.precompute.run.unit import Batch

__all__ = ["SquareStore", "StoredRenderer"]


class SquareStore:
    """Renders the squares of views from the original images, and commits them.

    Args:
        writer: Writer of the cache.
        source: The original images.
        views: Views by id.
        batch_rows: Rows rendered at a time, at most.
        threads: Number of threads that decode, render and encode.
        image_memory: Maximum memory, in bytes, for decoded images of a block.
        skip_bad_images: Whether unreadable images are marked instead of being an error.
        after_images: Called with 0 after every batch; may raise to stop.
    """

    def __init__(
        self,
        writer: CacheWriter,
        source: Source,
        views: Mapping[str, View],
        *,
        batch_rows: int,
        threads: int,
        image_memory: int,
        skip_bad_images: bool,
        after_images: Callable[[int], None],
    ) -> None:
        record = writer.manifest.squares
        assert record is not None
        self._writer, self._skip, self._after_images = writer, skip_bad_images, after_images
        self._unit_rows, self._quality, self._side = record.unit_rows, record.quality, record.side
        self._batch_rows = min(batch_rows, record.unit_rows)
        parts = {stored_under(view): stored_part(view) for view in views.values() if view.is_known}
        self._renderer = SourceRenderer(
            source,
            parts,
            [record.side],
            batch_rows=self._batch_rows,
            threads=threads,
            partners=_no_partners,
            table=writer.manifest.data.decoding,
            image_memory=image_memory,
        )
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="encode")

    @property
    def oddities(self) -> Counter[str]:
        """Number of images that are probably not decoded as intended, by reason."""
        return self._renderer.oddities

    def close(self) -> None:
        """Stop the threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._renderer.close()

    def store_block(self, view: View, block: Block, *, describe: bool) -> None:
        """Render and commit the missing squares of a view of a block.

        Args:
            view: The view.
            block: The block.
            describe: Whether digests and sizes of the original images go into the block, and
                unreadable ones are marked.

        Raises:
            UnreadableImage: An image cannot be decoded, and bad images are errors.
        """
        view_id, size = stored_under(view), self._unit_rows
        missing = self._writer.missing_units(SQUARES, view_id, size)
        describe = describe and not block.digests.any()
        units = [
            unit
            for unit in units_of(block.start, block.start + len(block.indices), size)
            if unit in missing or describe
        ]
        # in one pass: digests of a block are either all known or all to be filled in
        batches = self._renderer.batches(view_id, self._starts(units, block), block)
        for unit, of_unit in groupby(batches, key=lambda batch: batch.start // size):
            squares = [b""] * size
            for batch in of_unit:
                first = batch.start - unit * size
                encoded = self._encoded(batch, block, describe=describe)
                squares[first : first + len(encoded)] = encoded
            if unit in missing:
                self._write(view_id, unit, squares)
                missing.discard(unit)
        for unit in missing.intersection(units):  # of padding alone
            self._write(view_id, unit, [b""] * size)

    def _starts(self, units: Iterable[int], block: Block) -> list[int]:
        """Return the first rows of the batches of some units that have an image."""
        size, rows = self._unit_rows, self._batch_rows
        starts = [row for unit in units for row in range(unit * size, (unit + 1) * size, rows)]
        offsets = [row - block.start for row in starts]
        return [
            row
            for row, offset in zip(starts, offsets, strict=True)
            if (block.indices[offset : offset + rows] >= 0).any()
        ]

    def _encoded(self, batch: Batch, block: Block, *, describe: bool) -> list[bytes]:
        """Return the encoded squares of a batch; empty ones without a readable image."""
        offset = batch.start - block.start
        rows = slice(offset, offset + self._batch_rows)
        shown = (block.status[rows] == Status.OK) & (block.indices[rows] >= 0)
        for position, error in sorted(batch.failures.items()):
            shown[position] = False
            if not (self._skip and describe):
                raise error.at(
                    block.keys[offset + position],
                    "fix or remove the file, or pass --on-bad-image skip",
                ) from error
            block.status[offset + position] = Status.UNREADABLE
        encoded = self._pool.map(self._encode, batch.pixels[self._side], shown.tolist())
        self._after_images(0)
        return list(encoded)

    def _encode(self, pixels_CSS: NDArray[np.uint8], shown: bool) -> bytes:
        if not shown:
            return b""
        return encode_jpeg(np.ascontiguousarray(pixels_CSS.transpose(1, 2, 0)), self._quality)

    def _write(self, view_id: str, unit: int, squares: Sequence[bytes]) -> None:
        where = square_placement(view_id, self._writer.manifest).ledger
        arrays = joined_images(squares, f"{where}, unit {unit}")
        digests = b"".join(content_digest(square) if square else bytes(16) for square in squares)
        arrays["digest"] = np.frombuffer(digests, dtype=np.uint8).reshape(-1, 16)
        self._writer.write_squares(view_id, unit, arrays)


def store_again(plan: Plan, units: Iterable[tuple[str, str, int]], *, threads: int) -> None:
    """Render the squares of damaged units again, whose commits were removed.

    Args:
        plan: Plan of the repair.
        units: Group, view and unit of everything that is damaged.
        threads: Number of threads that decode, render and encode.
    """
    record = plan.writer.manifest.squares
    damaged = sorted((view, unit) for group, view, unit in units if group == SQUARES)
    if record is None or not damaged:
        return
    recipes = plan.writer.manifest.views.items()
    views = [parse_view(recipe, f"view {view_id}") for view_id, recipe in recipes]
    known = {stored_under(view): view for view in views if view.is_known}
    store = SquareStore(
        plan.writer,
        plan.source,
        known,
        batch_rows=plan.smallest_batch,
        threads=threads,
        image_memory=0,
        skip_bad_images=True,
        after_images=lambda _: None,
    )
    with closing(store):
        for view_id, unit in damaged:
            block = plan.block(unit * record.unit_rows // plan.writer.manifest.unit_rows)
            store.store_block(known[view_id], block, describe=False)


class StoredRenderer(SourceRenderer):
    """Renderer of views whose squares are in the cache: mixes and derived operations alone.

    Args:
        plan: Plan of the run.
        squares: The committed squares.
        batch_rows: Rows per batch.
        threads: Number of decoding and rendering threads.
    """

    def __init__(
        self, plan: Plan, squares: StoredSquares, *, batch_rows: int, threads: int
    ) -> None:
        super().__init__(
            plan.source,
            {view_id: finishing(view) for view_id, view in plan.views.items()},
            [squares.side],
            batch_rows=batch_rows,
            threads=threads,
            partners=self._partners_in,
            table=plan.decoding,
            image_memory=0,
        )
        self._plan, self._squares = plan, squares
        self._shown: View | None = None

    def batches(self, view_id: str, starts: Iterable[int], block: Block) -> Iterator[Batch]:
        """Render batches in order; see :class:`logitcache.precompute.run.unit.Renderer`."""
        self._shown = self._plan.views[view_id]
        return super().batches(view_id, starts, block)

    def _partners_in(self, _: View, block: Block) -> NDArray[np.int64]:
        assert self._shown is not None
        return self._plan.partners(self._shown, block)  # stored under the id of the whole view

    def _read(self, offset: int) -> bytes:
        assert self._block is not None
        assert self._shown is not None
        return self._squares.read(stored_under(self._shown), self._block.start + offset)


def _no_partners(view: View, _: Block) -> NDArray[np.int64]:
    raise AssertionError(f"view {view.id} is stored before it is mixed")
