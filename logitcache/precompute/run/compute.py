"""Computation of a plan: teachers are run on the missing items, and their units committed."""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

import torch

from logitcache.cache.format.groups import FeatureGroup, groups_of
from logitcache.cache.format.ledger import committed_units
from logitcache.cache.format.names import NO_VIEW, SAMPLES, teacher_of
from logitcache.cache.write.unit_commit import Conditions
from logitcache.data.sample import oddity_notes
from logitcache.errors import Interrupted
from logitcache.platforms import available_processors
from logitcache.precompute.environment import versions
from logitcache.precompute.run.background import Background
from logitcache.precompute.run.claim_queue import ClaimQueue
from logitcache.precompute.run.packing import ImagePacker
from logitcache.precompute.run.source_renderer import SourceRenderer
from logitcache.precompute.run.squares import SquareStore, StoredRenderer
from logitcache.precompute.run.unit import Teachers, Work, compute_item
from logitcache.teachers.ensemble import Tap
from logitcache.views.render import IMAGE_MEMORY

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence

    from logitcache.cache.store.base import Location
    from logitcache.cache.write.claims import Claims, Wait
    from logitcache.cache.write.writer import CacheWriter
    from logitcache.precompute.plan.plan import Plan
    from logitcache.precompute.plan.worklist import Block, WorkItem
    from logitcache.teachers.member import Precision

__all__ = [
    "Progress",
    "TeacherSet",
    "UnitRunner",
    "WorkerProgress",
    "compute_plan",
    "stopped",
    "waiting",
]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorkerProgress:
    """Progress of one worker of a cluster.

    Attributes:
        name: Name of the worker, and its host.
        state: ``preparing``, ``working``, ``idle``, ``silent`` or ``refused``.
        item: Description of the item that it computes; empty if it has none.
        images: Number of images of that item that are done.
        total: Number of all images of that item.
        seconds: Seconds since the item was assigned.
        slow: Whether that is more than twice the median of earlier items.
    """

    name: str
    state: str
    item: str = ""
    images: int = 0
    total: int = 0
    seconds: float = 0.0
    slow: bool = False


@dataclass(frozen=True)
class Progress:
    """Progress of a precompute run.

    Attributes:
        images: Number of images processed so far, counted once per item.
        total: Number of images to process in this run, counted once per item.
        workers: Progress of each worker; empty without a cluster.
        notices: Messages for the user, oldest first.
        waiting: Description of what the run waits for, and of the process that has it; empty while
            it computes.
        work: Description of the total; only in the first report.
    """

    images: int
    total: int
    workers: tuple[WorkerProgress, ...] = ()
    notices: tuple[str, ...] = ()
    work: str = ""
    waiting: str = ""


class TeacherSet(Teachers, Protocol):
    """The teachers of a run; see :class:`logitcache.teachers.ensemble.Ensemble`."""

    @property
    def sizes(self) -> Sequence[int]:
        """Sides of the squares that they are given, in pixels."""
        ...

    def keep(self, taps: Mapping[str, Tap]) -> None:
        """Keep the outputs of some layers, by name of the group."""
        ...


class UnitRunner:
    """Runner of the items of a plan in this process.

    Args:
        plan: Missing items, and the cache that they belong to.
        ensemble: The teachers.
        claims: Claims of this process.
        precision: Floating-point type of the forward passes, recorded in commits.
        threads: Number of decoding threads; all processors by default.
        image_memory: Maximum memory, in bytes, for decoded images of a block.
        skip_bad_images: Whether unreadable images are marked instead of being an error.
        after_batch: Called with the number of images of each batch; may raise to stop.
    """

    def __init__(
        self,
        plan: Plan,
        ensemble: TeacherSet,
        claims: Claims,
        *,
        precision: Precision,
        threads: int | None,
        image_memory: int = IMAGE_MEMORY,
        skip_bad_images: bool,
        after_batch: Callable[[int], None],
    ) -> None:
        records = plan.writer.manifest.teachers
        batches = {name: records[teacher_of(name)].canonical_batch for name in plan.groups}
        ensemble.keep(
            {
                name: Tap(group.teacher, group.tap, group.encoding)
                for name, group in groups_of(plan.groups, FeatureGroup).items()
            }
        )
        batch_rows = max(batches.values(), default=plan.smallest_batch)
        threads = threads or available_processors()
        _LOG.info(
            "%d decoding threads, batches of %s images, up to %.1f GB of decoded images, %s",
            threads,
            batches or batch_rows,
            image_memory / 1e9,
            precision,
        )
        self._plan, self._claims = plan, claims
        self._block: Block | None = None
        self._renderer = _renderer(plan, ensemble.sizes, batch_rows, threads, image_memory)
        self._store = _square_store(
            plan, batch_rows, threads, image_memory, skip_bad_images, after_batch
        )
        self._packer = (
            None
            if plan.originals is None
            else ImagePacker(
                plan.writer,
                plan.originals,
                plan.indices,
                threads=threads,
                skip_bad_images=skip_bad_images,
                after_images=after_batch,
            )
        )
        self._work = Work(
            writer=plan.writer,
            renderer=self._renderer,
            teachers=ensemble,
            groups=plan.groups,
            conditions=_conditions(precision, batches),
            views=plan.views,
            batch_rows=batch_rows,
            skip_bad_images=skip_bad_images,
            after_batch=after_batch,
        )

    @property
    def notes(self) -> list[str]:
        """Notes for the user on images that were probably not decoded as intended."""
        found = self._renderer.oddities if self._store is None else self._store.oddities
        return oddity_notes(found, "the images that were decoded")

    def close(self) -> None:
        """Stop the threads."""
        self._renderer.close()
        if self._store is not None:
            self._store.close()

    def work_off(
        self, items: Iterable[WorkItem], while_waiting: Callable[[str], None]
    ) -> Generator[WorkItem]:
        """Compute the units of items that are still missing, and yield each committed item.

        Args:
            items: Missing items in order.
            while_waiting: See :class:`logitcache.precompute.run.claim_queue.ClaimQueue`.
        """
        plan = self._plan
        written: deque[WorkItem] = deque()
        background = Background()
        queue = ClaimQueue(
            items,
            plan.writer.location,
            plan.groups,
            self._claims,
            settle=background.settle,
            while_waiting=while_waiting,
        )
        with queue:
            with background:
                # Background is left before the queue: claims are held until all is committed.
                for number, item in enumerate(queue):
                    self._compute(item, background)
                    background.do(partial(written.append, item))
                    if number == 0:  # the caller checks the first units before any further ones
                        background.settle()
                    yield from _given_back(written, queue)
            yield from _given_back(written, queue)

    def _compute(self, item: WorkItem, background: Background) -> None:
        plan = self._plan
        if self._block is None or self._block.start != item.block * len(self._block.indices):
            self._block = plan.block(item.block)
        # The same object for all views of a block: its samples may not be committed yet.
        block = self._block
        if item.samples and self._packer is not None:
            self._packer.pack_block(block)  # before anything shows them to a teacher
        view = plan.views[item.view_id]
        if self._store is not None:
            self._store.store_block(view, block, describe=item.samples)
        if view.mixing is not None and item.units:
            partners = plan.partners(view, block)
            background.do(partial(plan.writer.write_partners, view.id, item.block, partners))
        compute_item(self._work, item, block, background)


def _renderer(
    plan: Plan, sizes: Sequence[int], batch_rows: int, threads: int, image_memory: int
) -> SourceRenderer:
    """Return the renderer of what teachers are shown: stored squares, or views of images."""
    squares = plan.squares
    if squares is not None:
        return StoredRenderer(plan, squares, batch_rows=batch_rows, threads=threads)
    return SourceRenderer(
        plan.source,
        plan.views,
        sizes,
        batch_rows=batch_rows,
        threads=threads,
        partners=plan.partners,
        table=plan.decoding,
        image_memory=image_memory,
    )


def _square_store(
    plan: Plan,
    batch_rows: int,
    threads: int,
    image_memory: int,
    skip_bad_images: bool,
    after_images: Callable[[int], None],
) -> SquareStore | None:
    """Return what stores the views of a plan; None if the cache does not contain them."""
    if plan.writer.manifest.squares is None:
        return None
    return SquareStore(
        plan.writer,
        plan.source,
        plan.views,
        batch_rows=batch_rows,
        threads=threads,
        image_memory=image_memory,
        skip_bad_images=skip_bad_images,
        after_images=after_images,
    )


def _given_back(written: deque[WorkItem], queue: ClaimQueue) -> Iterator[WorkItem]:
    """Release the claims of committed items, and yield the items."""
    while written:
        item = written.popleft()
        queue.give_back(item)
        yield item


def compute_plan(
    plan: Plan,
    ensemble: TeacherSet,
    claims: Claims,
    *,
    precision: Precision,
    threads: int | None,
    image_memory: int = IMAGE_MEMORY,
    skip_bad_images: bool,
    on_progress: Callable[[Progress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    after_item: Callable[[WorkItem], None] | None = None,
) -> int:
    """Compute the missing items of a plan, and commit each unit as soon as it is complete.

    Args:
        plan: Missing items, and the cache that they belong to.
        ensemble: The teachers.
        claims: Claims of this process.
        precision: Floating-point type of the forward passes, recorded in commits.
        threads: Number of decoding threads; all processors by default.
        image_memory: Maximum memory, in bytes, for decoded images of a block.
        skip_bad_images: Whether unreadable images are marked instead of being an error.
        on_progress: Called after every batch, and while all remaining items are claimed by others.
        should_stop: Called just as often; if it returns true, the run stops.
        after_item: Called with each committed item.

    Returns:
        Number of images processed by this run, counted once per item.

    Raises:
        Interrupted: ``should_stop`` returned true.
    """
    counter = _Counter(plan.images, plan.writer, on_progress, should_stop)
    runner = UnitRunner(
        plan,
        ensemble,
        claims,
        precision=precision,
        threads=threads,
        image_memory=image_memory,
        skip_bad_images=skip_bad_images,
        after_batch=counter.add,
    )
    shown = 0
    with (
        contextlib.closing(runner),
        contextlib.closing(runner.work_off(plan.items, counter.wait)) as computed,
    ):
        for item in computed:
            shown += plan.images_of(item)
            if after_item is not None:
                after_item(item)
    plan.notes.extend(runner.notes)
    return shown


def stopped(writer: CacheWriter) -> Interrupted:
    """Return the error of a run that was stopped."""
    return _stopped(kept=writer.has_commits())


def _stopped(*, kept: bool) -> Interrupted:
    return Interrupted(
        "stopped; committed units are kept" if kept else "stopped before the first commit",
        kept=kept,
        hint="re-run the same command to resume",
    )


def waiting(
    location: Location,
    on_progress: Callable[[Progress], None] | None,
    should_stop: Callable[[], bool] | None,
) -> Callable[[Wait], None]:
    """Return a callback that reports a wait for the manifest lock, and stops the run on request.

    Args:
        location: The cache.
        on_progress: See :func:`compute_plan`.
        should_stop: See :func:`compute_plan`.
    """

    def report(wait: Wait) -> None:
        if on_progress is not None:
            on_progress(Progress(0, 0, waiting=str(wait)))
        if should_stop is not None and should_stop():
            raise _stopped(kept=bool(committed_units(location, SAMPLES, NO_VIEW)))

    return report


def _conditions(precision: Precision, batches: dict[str, int]) -> dict[str, Conditions]:
    found = versions()
    return {
        name: Conditions(batch, precision, torch.get_num_threads(), found)
        for name, batch in batches.items()
    }


class _Counter:
    """Counter of images that reports progress and stops the run on request."""

    def __init__(
        self,
        total: int,
        writer: CacheWriter,
        on_progress: Callable[[Progress], None] | None,
        should_stop: Callable[[], bool] | None,
    ) -> None:
        self._images, self._total = 0, total
        self._writer = writer
        self._on_progress, self._should_stop = on_progress, should_stop

    def add(self, images: int) -> None:
        self._images = min(self._images + images, self._total)
        if self._on_progress is not None:
            self._on_progress(Progress(self._images, self._total))
        self.stop_if_requested()

    def wait(self, what: str) -> None:
        """Report that the run waits."""
        if self._on_progress is not None:
            self._on_progress(Progress(self._images, self._total, waiting=what))
        self.stop_if_requested()

    def stop_if_requested(self) -> None:
        if self._should_stop is not None and self._should_stop():
            raise stopped(self._writer)
