"""Stage 1 without images, networks or torch: everything else is real.

The renderer and the teachers come in through the Protocols of ``precompute.unit``; answers are a
function of the row, so a cache can be compared with what it ought to be.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from logitcache.cache.format.groups import TeacherGroup
from logitcache.cache.format.manifest import DataRecord, Segment, TeacherRecord
from logitcache.cache.format.names import NO_VIEW, SAMPLES, Status, canonical_json, sha256
from logitcache.cache.store.open import locate
from logitcache.cache.write.unit_commit import Conditions
from logitcache.cache.write.writer import CacheWriter
from logitcache.data.identity import key_hash
from logitcache.encoding.sparse import SparseEncoding
from logitcache.precompute.plan.worklist import Block, Missing, worklist
from logitcache.precompute.run.background import Background
from logitcache.precompute.run.unit import Batch, Work, compute_item
from logitcache.views.spec import ViewsConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from logitcache.cache.store.base import Location
    from logitcache.errors import UnreadableImage
    from logitcache.precompute.plan.worklist import WorkItem
    from logitcache.views.tokens import ShownPatches

CLASSES, UNIT, BATCH, ROWS = 40, 32, 8, 100
VIEWS_BY_ID = {view.id: view for view in ViewsConfig(count=2).views()}
RECIPES = {view_id: view.to_json() for view_id, view in VIEWS_BY_ID.items()}
VIEWS = list(RECIPES)


class NullRenderer:
    """Pixels that encode their row; failures where the test wants them."""

    def __init__(self, failures: Mapping[int, UnreadableImage] | None = None) -> None:
        self._failures = failures or {}

    def batches(self, view_id: str, starts: Iterable[int], block: Block) -> Iterator[Batch]:
        for start in starts:
            pixels = np.zeros((BATCH, 3, 1, 1), dtype=np.uint8)
            failures = {}
            for position in range(BATCH):
                row = start + position
                offset = row - block.start
                if row in self._failures and block.status[offset] == Status.OK:
                    failures[position] = self._failures[row]
                elif block.status[offset] == Status.OK:
                    pixels[position, :, 0, 0] = (row % 256, row // 256 + 1, VIEWS.index(view_id))
                    block.digests[offset] = row % 251 + 1
                    block.sizes[offset] = row
            yield Batch(start, {1: pixels}, failures)


class NullTeachers:
    """Answers that are a function of the row, the view and the teacher."""

    def __init__(self, nan_row: int | None = None) -> None:
        self.requested: list[tuple[int, int, str]] = []
        self._nan_row = nan_row

    def start(
        self,
        pixels: Mapping[int, NDArray[np.uint8]],
        batches: Mapping[str, int],
        kept_patches: Mapping[str, NDArray[np.int64] | None],
        shown: ShownPatches | None = None,
    ) -> dict[str, Callable[[], NDArray[np.float32]]]:
        outputs: dict[str, Callable[[], NDArray[np.float32]]] = {}
        for name in kept_patches:
            low, high, view = pixels[1][:, :, 0, 0].astype(np.int64).T
            rows = low + 256 * (high - 1)
            requested = zip(rows, view, high, strict=True)
            self.requested += [(int(r), int(v), name) for r, v, h in requested if h > 0]
            logits = logits_of(rows, view, name)
            if self._nan_row is not None:
                logits[rows == self._nan_row] = np.nan
            outputs[name] = partial(np.copy, logits)
        return outputs


def logits_of(rows: NDArray[np.int64], view: NDArray[np.int64], name: str) -> NDArray[np.float32]:
    seed = sum(name.encode())
    phase = rows[:, None] * 0.37 + view[:, None] * 1.7 + seed
    logits: NDArray[np.float32] = (5 * np.sin(phase * np.arange(1, CLASSES + 1))).astype(np.float32)
    return logits


def open_or_create(path: Path | Location, rows: int = ROWS) -> CacheWriter:
    location = locate(path)
    if not location.is_empty():
        location.sweep()
        return CacheWriter.open(location)
    return CacheWriter.create(
        location,
        unit_rows=UNIT,
        segment=Segment(start=0, rows=rows),
        data=DataRecord(description="null", class_names=()),
        versions={},
    )


def block_of(writer: CacheWriter, number: int) -> Block:
    start = number * UNIT
    rows = start + np.arange(UNIT)
    here = np.zeros(UNIT, dtype=np.bool_)
    for segment in writer.manifest.segments:
        here |= (rows >= segment.start) & (rows < segment.stop)
    keys = np.array([f"{start + i:06d}" if here[i] else "" for i in range(UNIT)], dtype=object)
    block = Block(
        start=start,
        indices=np.where(here, start + np.arange(UNIT), -1),
        keys=keys,
        hashes=np.array([key_hash(key) if key else 0 for key in keys], dtype=np.uint64),
        labels=np.full(UNIT, -1, dtype=np.int32),
        status=np.where(here, Status.OK, Status.PADDING).astype(np.uint8),
        digests=np.zeros((UNIT, 16), dtype=np.uint8),
        sizes=np.zeros(UNIT, dtype=np.int64),
    )
    if number not in writer.missing_units(SAMPLES, NO_VIEW, UNIT):
        block.status = writer.read_samples(start, start + UNIT).status
    return block


def run(
    path: Path | Location,
    teachers: Mapping[str, int],
    *,
    renderer: NullRenderer | None = None,
    answers: NullTeachers | None = None,
    views: list[str] | None = None,
    rows: int = ROWS,
    more: int = 0,
    skip_bad_images: bool = False,
    after_batch: Callable[[int], None] = lambda _: None,
) -> CacheWriter:
    """Do everything that is missing, and seal.

    Args:
        path: The cache.
        teachers: By name: rows of a unit of its group.
        renderer: Pixels.
        answers: Teachers.
        views: Ids of the views.
        rows: Images.
        more: Images to add as a second segment, once the samples of the first are written.
        skip_bad_images: As in the configuration.
        after_batch: As in :class:`Work`.
    """
    view_ids = views or VIEWS
    writer = open_or_create(path, rows)
    samples = writer.missing_units(SAMPLES, NO_VIEW, UNIT)
    if more and len(writer.manifest.segments) == 1:
        assert not samples
        writer.add_segment(Segment(start=writer.manifest.capacity, rows=more))
    declare_all(writer, teachers, view_ids)
    groups = {name: writer.teachers()[name] for name in teachers}
    work = Work(
        writer=writer,
        renderer=renderer or NullRenderer(),
        teachers=answers or NullTeachers(),
        groups=groups,
        conditions={name: Conditions(BATCH, "float32", 1) for name in groups},
        views=VIEWS_BY_ID,
        batch_rows=BATCH,
        skip_bad_images=skip_bad_images,
        after_batch=after_batch,
    )
    for item in missing_items(writer, groups, view_ids):
        compute_alone(work, item, block_of(writer, item.block))
    writer.seal("fingerprint", {})
    return writer


def compute_alone(work: Work, item: WorkItem, block: Block) -> None:
    """Compute an item to its last commit."""
    with Background() as background:
        compute_item(work, item, block, background)


def declare_all(writer: CacheWriter, teachers: Mapping[str, int], view_ids: list[str]) -> None:
    """Declare views and teachers; teachers by the rows of a unit of their groups."""
    writer.add_views({view: RECIPES[view] for view in view_ids})
    for name, unit_rows in teachers.items():
        if name not in writer.manifest.teachers:
            _declare(writer, name, unit_rows, view_ids)
        writer.extend_group(name, view_ids)


def missing_items(
    writer: CacheWriter, groups: Mapping[str, TeacherGroup], view_ids: list[str]
) -> list[WorkItem]:
    """List what a cache lacks."""
    missing = {
        name: Missing(
            group.unit_rows,
            {v: writer.missing_units(group.path, v, group.unit_rows) for v in view_ids},
        )
        for name, group in groups.items()
    }
    samples = writer.missing_units(SAMPLES, NO_VIEW, UNIT)
    return worklist(UNIT, view_ids, samples, missing)


def _declare(writer: CacheWriter, name: str, unit_rows: int, view_ids: list[str]) -> None:
    lock: dict[str, Any] = {"name": name}
    group = TeacherGroup(
        teacher=name,
        num_classes=CLASSES,
        encoding=SparseEncoding(CLASSES, 5),
        optional=("lse",),
        unit_rows=unit_rows,
        slots=tuple(view_ids),
        lock_sha256=sha256(canonical_json(lock)),
        class_names_sha256=sha256(canonical_json(list(writer.manifest.data.class_names))),
    )
    writer.add_teacher(TeacherRecord(lock=lock, canonical_batch=BATCH, source="null"), group)
