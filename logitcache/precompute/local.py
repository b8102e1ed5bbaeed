"""Stage 1 on this machine: plan, compute what is missing, seal."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from logitcache.cache.partners import mixed_views
from logitcache.cache.writer import Conditions
from logitcache.data.readers import open_source
from logitcache.errors import CacheUnsealed, Interrupted, UsageError
from logitcache.precompute.environment import versions
from logitcache.precompute.feed import SourceRenderer, partner_offsets
from logitcache.precompute.measure import Size, images_fingerprint, size_of, teacher_accuracy
from logitcache.precompute.plan import Plan, make_plan
from logitcache.precompute.probing import keep_probes
from logitcache.precompute.unit import Work, compute_item
from logitcache.teachers.ensemble import Ensemble

if TYPE_CHECKING:
    from collections.abc import Callable

    from logitcache.cache.writer import CacheWriter
    from logitcache.precompute.config import PrecomputeConfig

__all__ = ["Progress", "Summary", "build_cache", "resolve_device"]


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        images: Images shown to the teachers so far, every view counted.
        total: Images to be shown by this run.
    """

    images: int
    total: int


@dataclass(frozen=True)
class Summary:
    """What a run did, and what the cache holds now.

    Attributes:
        cache: Where it lies.
        images: Images in the cache.
        unreadable: How many of them could not be decoded.
        views: Views of it that this run asked for.
        computed: Images shown to the teachers by this run, every view counted.
        seconds: What computing took.
        accuracy: Share of labelled images each teacher gets right, by view; empty without labels.
        sizes: Bytes of each teacher's answers.
        revision: Number of the sealed revision.
        notes: What the user should be told.
    """

    cache: str
    images: int
    unreadable: int
    views: int
    computed: int
    seconds: float
    accuracy: dict[str, dict[str, float]]
    sizes: dict[str, Size]
    revision: int
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the summary as JSON values."""
        return {**asdict(self), "notes": list(self.notes)}


def build_cache(
    config: PrecomputeConfig,
    *,
    on_progress: Callable[[Progress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Summary:
    """Run the teachers over everything that the cache lacks, and seal it.

    Args:
        config: Which teachers, which views, which images, where to.
        on_progress: Called after every batch.
        should_stop: Asked after every batch; units that are whole by then are kept.

    Raises:
        LogitcacheError: See :mod:`logitcache.errors`. Committed units are never lost; the same call
            goes on where this one stopped.
    """
    source = open_source(config.data)
    ensemble = Ensemble(
        config.teachers, device=resolve_device(config.device), precision=config.precision
    )
    plan = make_plan(config, source, ensemble)
    started = time.monotonic()
    _compute(config, plan, ensemble, on_progress, should_stop)
    keep_probes(plan, min(ensemble.sizes))
    seconds = time.monotonic() - started
    return _seal(plan, seconds)


def resolve_device(name: str) -> torch.device:
    """Return the device that a name means; ``auto`` takes an accelerator if there is one.

    Raises:
        UsageError: There is no such device here.
    """
    if name != "auto":
        return _usable(name)
    accelerator = (
        torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    )
    return accelerator or torch.device("cpu")


def _usable(name: str) -> torch.device:
    """Return a device on which a tensor can be made."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(
            "this device cannot be used",
            where="device",
            got=f"{name}: {str(error).partition(chr(10))[0]}",
            hint="auto takes an accelerator if there is one, else the processor",
        ) from None
    return device


def _compute(
    config: PrecomputeConfig,
    plan: Plan,
    ensemble: Ensemble,
    on_progress: Callable[[Progress], None] | None,
    should_stop: Callable[[], bool] | None,
) -> None:
    if not plan.items:
        return
    batches = {name: plan.writer.manifest.teachers[name].canonical_batch for name in plan.groups}
    batch_rows = max(batches.values())
    renderer = SourceRenderer(
        plan.source,
        plan.views,
        ensemble.sizes,
        batch_rows=batch_rows,
        threads=config.threads or len(os.sched_getaffinity(0)),
    )
    counter = _Counter(plan.images, plan.writer, on_progress, should_stop)
    work = Work(
        writer=plan.writer,
        renderer=renderer,
        teachers=ensemble,
        groups=plan.groups,
        conditions=_conditions(config, batches),
        batch_rows=batch_rows,
        skip_bad_images=config.on_bad_image == "skip",
        after_batch=counter.add,
    )
    try:
        for item in plan.items:
            block = plan.block(item.block)
            view = plan.views[item.view_id]
            if view.mixing is not None and item.units:
                plan.writer.write_partners(view.id, item.block, partner_offsets(view, block))
            compute_item(work, item, block)
    finally:
        renderer.close()


def _conditions(config: PrecomputeConfig, batches: dict[str, int]) -> dict[str, Conditions]:
    found = versions()
    return {
        name: Conditions(batch, config.precision, torch.get_num_threads(), found)
        for name, batch in batches.items()
    }


class _Counter:
    """Counts images and passes on the wish to stop."""

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
        if self._should_stop is not None and self._should_stop():
            kept = self._writer.has_commits()
            raise Interrupted(
                "stopped; committed units are kept" if kept else "stopped before the first commit",
                kept=kept,
                hint="run the same command again to go on",
            )


def _seal(plan: Plan, seconds: float) -> Summary:
    writer = plan.writer
    missing = writer.missing()
    if missing:
        raise CacheUnsealed(
            "everything asked for is computed, but the cache lacks units of other teachers",
            where=writer.location,
            got=", ".join(f"{path}: {count} units" for path, count in list(missing.items())[:5]),
            hint="name those teachers too",
        )
    accuracy = _accuracy(writer)
    pointer = writer.seal(images_fingerprint(writer), accuracy)
    samples = writer.read_samples(0, writer.manifest.capacity)
    return Summary(
        cache=str(writer.location),
        images=len(samples.rows),
        unreadable=len(samples.rows) - len(samples.readable),
        views=len(plan.views),
        computed=plan.images,
        seconds=seconds,
        accuracy=accuracy,
        sizes={name: size_of(writer, group) for name, group in writer.groups().items()},
        revision=pointer.number,
        notes=tuple(plan.notes),
    )


def _accuracy(writer: CacheWriter) -> dict[str, dict[str, float]]:
    """Measure each teacher on its first view that shows one image, ``eval`` if there is one."""
    measured: dict[str, dict[str, float]] = {}
    mixed = mixed_views(writer.manifest)
    for name, group in writer.groups().items():
        view_id = next((v for v in group.view_ids if v not in mixed), None)
        if view_id is None:
            measured[name] = {}
            continue
        value = teacher_accuracy(writer, group, view_id)
        measured[name] = {} if value is None else {view_id: value}
    return measured
