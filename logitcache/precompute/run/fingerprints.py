"""Rendering and storing of view fingerprints."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from logitcache.cache.format.fingerprints import probed, write_fingerprints
from logitcache.data.lookup import position_dtype
from logitcache.precompute.environment import versions
from logitcache.views.fingerprints import FingerprintImage, choose_fingerprints, make_fingerprint
from logitcache.views.stored import finishing, stored_under

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from logitcache.cache.format.manifest import Segment
    from logitcache.precompute.plan.plan import Plan
    from logitcache.precompute.plan.worklist import Block
    from logitcache.views.fingerprints import Fingerprint
    from logitcache.views.spec import View

__all__ = ["keep_fingerprints"]


def keep_fingerprints(plan: Plan, size: int) -> None:
    """Store fingerprints for the views and segments that have none yet.

    Args:
        plan: Plan of the run; all of its units are committed.
        size: Side of the rendered squares in pixels; the input size of one of the teachers.
    """
    known = probed(plan.writer.location)
    lacking: dict[tuple[str, ...], list[Segment]] = {}
    for segment in plan.writer.manifest.segments:
        done = [document.views for document in known if segment.start in document.segments]
        views = tuple(v for v in plan.views if not any(v in views for views in done))
        lacking.setdefault(views, []).append(segment)
    for views, segments in lacking.items():
        if views:
            _keep(plan, views, segments, size)


def _keep(plan: Plan, views: Sequence[str], segments: Sequence[Segment], size: int) -> None:
    blocks = _Blocks(plan)
    chosen = choose_fingerprints(views, [blocks.readable(segment) for segment in segments])
    by_row = sorted(chosen, key=lambda probe: probe[1])
    probes = {probe: _probe(plan, blocks, *probe, size) for probe in by_row}
    write_fingerprints(
        plan.writer.location,
        {
            "views": list(views),
            "segments": [segment.start for segment in segments],
            "versions": versions(),
            "probes": [probes[probe].to_json() for probe in chosen],
        },
    )


class _Blocks:
    """Blocks of a plan by row; the last one is kept in memory."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._rows = plan.writer.manifest.unit_rows
        self._last: tuple[int, Block] | None = None

    def of(self, row: int) -> Block:
        number = row // self._rows
        if self._last is None or self._last[0] != number:
            self._last = (number, self._plan.block(number))
        return self._last[1]

    def readable(self, segment: Segment) -> NDArray[np.signedinteger]:
        """Return the readable rows of a segment."""
        dtype, parts = position_dtype(segment.stop), []
        for start in range(segment.start, segment.stop, self._rows):
            # block by block, so that keys and digests of all rows are never in memory together
            stop = min(start + self._rows, segment.stop)
            parts.append(self._plan.writer.read_samples(start, stop).readable.astype(dtype))
        return np.concatenate(parts)


def _probe(plan: Plan, blocks: _Blocks, view_id: str, row: int, size: int) -> Fingerprint:
    view, block = plan.views[view_id], blocks.of(row)
    partner = None
    if view.mixing is not None:
        offset = int(plan.partners(view, block)[row - block.start])
        partner = _image(plan, view, block, offset) if block.start + offset != row else None
    image = _image(plan, view, block, row - block.start)
    if plan.squares is None:
        return make_fingerprint(view, size, image, partner, plan.decoding)
    found = make_fingerprint(finishing(view), size, image, partner, plan.decoding)
    return replace(found, view_id=view_id)


def _image(plan: Plan, view: View, block: Block, offset: int) -> FingerprintImage:
    row, squares = block.start + offset, plan.squares
    stored = (
        plan.source.read(int(block.indices[offset]))
        if squares is None
        else squares.read(stored_under(view), row)
    )
    return FingerprintImage(row, stored, int(block.hashes[offset]))
