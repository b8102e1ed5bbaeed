"""A cluster's work without images, networks or torch: workers, commits and deaths are real.

Workers answer as :mod:`tests.precompute.null` does. What goes wrong on one of them is written into
the opener, which travels to it.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from logitcache.cache.store.open import locate
from logitcache.cache.write.claims import Claims
from logitcache.cache.write.unit_commit import Conditions
from logitcache.errors import DataMismatch
from logitcache.precompute.run.claim_queue import ClaimQueue
from logitcache.precompute.run.unit import Work
from tests.precompute import null

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable
    from pathlib import Path

    from logitcache.data.source import Source
    from logitcache.precompute.plan.plan import Plan
    from logitcache.precompute.plan.worklist import WorkItem

TEACHERS = {"coarse": null.UNIT, "fine": null.UNIT // 2}


@dataclass(frozen=True)
class NullOpener:
    """Makes a runner on a worker.

    Attributes:
        path: The cache.
        batch_seconds: What a batch takes.
        deadly: Number of a block that kills its worker.
        faulty: Number of a block with an image that has changed.
        refusals: How many of the workers, the first ones, have other images.
        stale_seconds: After which claims without a heartbeat are taken over.
    """

    path: Path
    batch_seconds: float = 0.0
    deadly: int | None = None
    faulty: int | None = None
    refusals: int = 0
    stale_seconds: float | None = None

    def open(self, after_batch: Callable[[int], None], neighbors: int) -> NullRunner:
        del neighbors
        for number in range(self.refusals):
            if locate(self.path.with_suffix(".refused")).create(f"{number}", b""):
                raise DataMismatch("these are not the images", where=f"refusal {number}")
        return NullRunner(self, after_batch)


class NullRunner:
    """Computes items; exits or fails where the test wants it to."""

    def __init__(self, opener: NullOpener, after_batch: Callable[[int], None]) -> None:
        self._opener = opener
        self._writer = null.open_or_create(opener.path)
        self._groups = self._writer.row_groups()
        self._claims = Claims(locate(opener.path), stale_seconds=opener.stale_seconds)

        def batch_done(images: int) -> None:
            time.sleep(opener.batch_seconds)
            after_batch(images)

        self._work = Work(
            writer=self._writer,
            renderer=null.NullRenderer(),
            teachers=null.NullTeachers(),
            groups=self._groups,
            conditions={name: Conditions(null.BATCH, "float32", 1) for name in self._groups},
            views=null.VIEWS_BY_ID,
            batch_rows=null.BATCH,
            skip_bad_images=False,
            after_batch=batch_done,
        )

    def work_off(
        self, items: Iterable[WorkItem], while_waiting: Callable[[str], None]
    ) -> Generator[WorkItem]:
        location = self._writer.location
        queue = ClaimQueue(
            items,
            location,
            self._groups,
            self._claims,
            settle=lambda: None,
            while_waiting=while_waiting,
        )
        with queue:
            for item in queue:
                self._compute(item)
                queue.give_back(item)
                yield item

    def _compute(self, item: WorkItem) -> None:
        if item.block == self._opener.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        if item.block == self._opener.faulty:
            raise DataMismatch("an image has changed since it was first read", where="cat.jpg")
        null.compute_alone(self._work, item, null.block_of(self._writer, item.block))

    def close(self) -> None:
        pass


def null_plan(path: Path, rows: int = null.ROWS) -> Plan:
    """Declare a cache of two teachers and two views, and list what it lacks."""
    from logitcache.precompute.plan.plan import Plan  # workers need not import torch

    writer = null.open_or_create(path, rows)
    null.declare_all(writer, TEACHERS, null.VIEWS)
    groups = writer.row_groups()
    capacity = writer.manifest.capacity
    indices = np.where(np.arange(capacity) < rows, np.arange(capacity), -1)
    return Plan(
        writer=writer,
        source=cast("Source", None),  # nothing is read
        indices=indices,
        views={},
        groups=groups,
        items=null.missing_items(writer, writer.teachers(), null.VIEWS),
        notes=[],
    )
