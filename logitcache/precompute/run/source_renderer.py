"""Renderer of a source: reads, digests, decodes and renders the rows of a block."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from logitcache.cache.format.names import Status
from logitcache.data.identity import content_digest, stored_bytes
from logitcache.errors import DataMismatch
from logitcache.precompute.run.unit import Batch
from logitcache.views.render import BatchRequest, ViewRenderer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from logitcache.data.source import Source
    from logitcache.precompute.plan.worklist import Block
    from logitcache.views.spec import View

__all__ = ["SourceRenderer"]


class SourceRenderer:
    """Renderer of the rows of a source in threads, with a check of the content of each image.

    If the samples of a block are not written yet, the digest of every image goes into the block;
    otherwise it is compared with the stored one, once per process.

    Args:
        source: Image set.
        views: Views by id.
        sizes: Sides of the rendered squares, in pixels.
        batch_rows: Rows per batch.
        threads: Number of decoding and rendering threads.
        partners: Function that returns the offset in its block of each row's partner, int64 (U,),
            for a view that mixes images and a block; -1 for rows without one.
        table: Version of the decoding table.
        image_memory: Maximum memory, in bytes, for decoded images of a block.
    """

    def __init__(
        self,
        source: Source,
        views: Mapping[str, View],
        sizes: Sequence[int],
        *,
        batch_rows: int,
        threads: int,
        partners: Callable[[View, Block], NDArray[np.int64]],
        table: int,
        image_memory: int,
    ) -> None:
        self._source = source
        self._views = views
        self._batch_rows = batch_rows
        self._renderer = ViewRenderer(
            self._read,
            sizes,
            threads=threads,
            table=table,
            on_odd=self._note_odd,
            image_memory=image_memory if len(views) > 1 else 0,
        )
        self._block: Block | None = None
        self._partners_of = partners
        self._partners: NDArray[np.int64] | None = None
        self._known = False
        self._seen: set[int] = set()
        self._odd: set[tuple[int, str]] = set()

    @property
    def oddities(self) -> Counter[str]:
        """Number of images that are probably not decoded as intended, by reason."""
        return Counter(reason for _, reason in self._odd)

    def close(self) -> None:
        """Stop the threads."""
        self._renderer.close()

    def batches(self, view_id: str, starts: Iterable[int], block: Block) -> Iterator[Batch]:
        """Render batches in order; see :class:`logitcache.precompute.run.unit.Renderer`."""
        if self._block is None or self._block.start != block.start:
            self._renderer.forget_images()
        self._block, self._known = block, bool(block.digests.any())
        view = self._views[view_id]
        if not self._known:
            # Partners must be readable, which is known once the samples are written. Of a view that
            # mixes images, this pass only reads and digests them: its item has no units of teachers
            # (worklist.py).
            view = view.unmixed
        self._partners = None if view.mixing is None else self._partners_of(view, block)
        for rendered in self._renderer.batches(
            self._request(view, start, block) for start in starts
        ):
            start = block.start + int(rendered.request.tag)
            yield Batch(start, rendered.pixels, rendered.failures)
        self._seen.add(block.start)

    def _request(self, view: View, start: int, block: Block) -> BatchRequest:
        """Return the request for the batch that starts at a row; unreadable rows are left out."""
        offset = start - block.start
        rows = np.arange(offset, offset + self._batch_rows)
        readable = (block.status[rows] == Status.OK) & (block.indices[rows] >= 0)
        partners = None if self._partners is None else self._partners[rows]
        return BatchRequest(
            view=view,
            indices=np.where(readable, rows, -1),
            hashes=block.hashes[rows],
            tag=offset,
            partners=partners,
            partner_hashes=None if partners is None else block.hashes[partners],
        )

    def _note_odd(self, offset: int, reason: str) -> None:
        """Record an image once, although several threads may decode it several times."""
        assert self._block is not None
        self._odd.add((self._block.start + offset, reason))

    def _read(self, offset: int) -> bytes | NDArray[np.uint8]:
        block = self._block
        assert block is not None
        image = self._source.read(int(block.indices[offset]))
        if block.start in self._seen:
            return image
        digest = np.frombuffer(content_digest(image), dtype=np.uint8)
        if self._known and not np.array_equal(digest, block.digests[offset]):
            raise DataMismatch(
                "an image has changed since the cache was created",
                where=block.keys[offset],
                expected=f"digest {bytes(block.digests[offset]).hex()}",
                got=f"digest {bytes(digest).hex()}",
                hint="restore the file, or create a new cache",
            )
        block.digests[offset] = digest
        block.sizes[offset] = len(stored_bytes(image))
        return image
