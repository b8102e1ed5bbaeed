"""Computation of a cache: plan, compute what is missing, seal."""

from __future__ import annotations

import pickle
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from logitcache.cache.format.card import state_facts
from logitcache.cache.format.images import image_bytes
from logitcache.cache.format.manifest import read_manifest
from logitcache.cache.format.squares import square_bytes, stored_views
from logitcache.cache.store.open import locate
from logitcache.cache.write.claims import CLAIMS, MANIFEST, Claims
from logitcache.data.decode import DECODING
from logitcache.data.readers import open_source
from logitcache.data.source import left_out_of, notes_of
from logitcache.errors import CacheUnsealed, UsageError
from logitcache.networks.device import resolve_device
from logitcache.precompute.plan.plan import Plan, make_plan
from logitcache.precompute.plan.preflight import (
    FirstUnit,
    check_accuracy,
    check_images,
    check_storage,
)
from logitcache.precompute.plan.recipes import check_recipes
from logitcache.precompute.plan.rows import open_images
from logitcache.precompute.run.compute import Progress, compute_plan, waiting
from logitcache.precompute.run.fingerprints import keep_fingerprints
from logitcache.precompute.run.summary import (
    Size,
    accuracy_of,
    count_images,
    images_fingerprint,
    size_of,
)
from logitcache.precompute.sample.batch_size import choose_batch, memory_explained
from logitcache.teachers.ensemble import Ensemble
from logitcache.teachers.forward_clock import ForwardClock, ForwardTime

if TYPE_CHECKING:
    from collections.abc import Callable

    from logitcache.cache.write.writer import CacheWriter
    from logitcache.data.readers import ImageSet
    from logitcache.precompute.config import PrecomputeConfig

__all__ = ["Progress", "Summary", "build_cache"]


@dataclass(frozen=True)
class Summary:
    """Result of a precompute run.

    Attributes:
        cache: Location of the cache.
        images: Number of images in the cache.
        unreadable: Number of images that could not be decoded.
        views: Number of views that this run requested.
        computed: Number of images processed by this run, counted once per view; images that are
            read first, to find those that can be mixed, count once more.
        seconds: Duration of the computation, without planning and sealing.
        forward: Time of the forward passes of each teacher; empty where workers computed them.
        accuracy: Accuracy of each teacher on the labeled images, by view; empty without labels.
        sizes: Sizes of each teacher's outputs, and of each ``<teacher>/features/<tap>``.
        image_bytes: Bytes of the images, or of their views, in the cache; None without any.
        revision: Number of the sealed revision.
        revision_sha256: SHA-256 of the revision, which determines every sealed byte.
        unlisted: Number of files of the image set that are not used as images, by reason.
        notes: Notes for the user.
    """

    cache: str
    images: int
    unreadable: int
    views: int
    computed: int
    seconds: float
    forward: dict[str, ForwardTime]
    accuracy: dict[str, dict[str, float]]
    sizes: dict[str, Size]
    image_bytes: int | None
    revision: int
    revision_sha256: str
    unlisted: dict[str, int]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the summary as JSON values."""
        return {**asdict(self), "notes": list(self.notes)}


def build_cache(
    config: PrecomputeConfig,
    *,
    data: ImageSet | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Summary:
    """Run the teachers on everything that the cache lacks, and seal the cache.

    Args:
        config: Configuration of the cache and of the run.
        data: The images, instead of ``config.data``: also a source or a map-style data set from
            Python. Workers get a pickled copy.
        on_progress: Called after planning, after every batch, and while the run waits for another
            one.
        should_stop: Called after every batch and while the run waits; if it returns true, the run
            stops, and complete units are kept.

    Raises:
        LogitcacheError: See :mod:`logitcache.errors`. Committed units are never lost; the same call
            continues where this one stopped.
    """
    location = locate(config.cache, write=True)
    claims = Claims(location, on_wait=waiting(location, on_progress, should_stop))
    if location.size("zarr.json") is None and location.names(CLAIMS):
        with claims.exclusive(MANIFEST):
            pass  # another run is creating the cache; its manifest is read next
    images = config.data if data is None else open_source(data)
    if data is not None and config.on_cluster:
        _check_can_be_sent(images)
    source = open_images(images, location, config.images)
    added = check_recipes(config, location)
    # on a cluster this process only plans, and leaves the accelerators to the workers
    device = resolve_device("cpu" if config.on_cluster else config.device)
    ensemble = Ensemble(
        config.teachers,
        device=device,
        precision=config.precision,
        class_names=source.class_names,
    )
    known = set() if location.is_empty() else set(read_manifest(location).teachers)
    new = sorted(ensemble.members.keys() - known)
    batch, notes = choose_batch(ensemble, new, config.batch_size)
    config = config.model_copy(update={"batch_size": batch})
    # before anything is declared: a refused teacher leaves no trace in the cache
    check_accuracy(source, ensemble, new, batch, config.min_accuracy)
    table = read_manifest(location).data.decoding if known else DECODING
    early = [*added, *check_images(source, ensemble, new, table)]
    early += [note for name in new for note in ensemble.members[name].notes]
    with memory_explained():
        # only while the cache is declared, so that other runs can compute at the same time
        with claims.exclusive(MANIFEST):
            plan = make_plan(config, source, ensemble)
            plan.notes.extend([*early, *notes])
            if plan.items:
                check_storage(plan)
        if on_progress is not None:
            on_progress(Progress(0, plan.images, notices=tuple(early), work=plan.work))
        ensemble.clock = ForwardClock(device)  # without the forward passes of samples before
        started = time.monotonic()
        own = None if data is None else images
        shown = _compute(config, own, plan, ensemble, claims, on_progress, should_stop)
    seconds = time.monotonic() - started
    with claims.exclusive(MANIFEST):
        plan.writer.refresh()  # another run may have declared teachers or views since then
        keep_fingerprints(plan, min(ensemble.sizes))
        state_facts(location, config.card)
        summary = _seal(plan, shown, seconds, ensemble.clock.times)
        claims.sweep()
        return summary


def _check_can_be_sent(images: object) -> None:
    """Refuse images from Python that workers cannot get."""
    try:
        pickle.dumps(images)
    except Exception as error:  # whatever the code of a user raises
        raise UsageError(
            "images from Python cannot be sent to workers",
            expected="a source that can be pickled",
            got=f"{type(error).__name__}: {error}",
            hint="open files in read, not before; or compute in this process, without workers",
        ) from error


def _compute(
    config: PrecomputeConfig,
    data: ImageSet | None,
    plan: Plan,
    ensemble: Ensemble,
    claims: Claims,
    on_progress: Callable[[Progress], None] | None,
    should_stop: Callable[[], bool] | None,
) -> int:
    """Compute a plan in this process, or on the workers of a cluster."""
    if config.on_cluster:
        from logitcache.precompute.cluster.cluster import compute_plan_on_cluster

        return compute_plan_on_cluster(
            plan,
            ensemble,
            config,
            data=data,
            on_progress=on_progress,
            should_stop=should_stop,
            after_item=FirstUnit(plan),
        )
    return compute_plan(
        plan,
        ensemble,
        claims,
        precision=config.precision,
        threads=config.threads,
        image_memory=config.image_memory,
        skip_bad_images=config.on_bad_image == "skip",
        on_progress=on_progress,
        should_stop=should_stop,
        after_item=FirstUnit(plan),
    )


def _image_bytes(writer: CacheWriter) -> int | None:
    if writer.manifest.squares is not None:
        return square_bytes(writer.location, stored_views(writer.manifest))
    return image_bytes(writer.location) if writer.manifest.images else None


def _seal(plan: Plan, shown: int, seconds: float, forward: dict[str, ForwardTime]) -> Summary:
    writer = plan.writer
    missing = writer.missing()
    if missing:
        raise CacheUnsealed(
            "all requested units are committed, but units of other teachers are missing",
            where=writer.location,
            got=", ".join(f"{path}: {count} units" for path, count in list(missing.items())[:5]),
            hint="pass those teachers in the same command as well",
        )
    accuracy = accuracy_of(writer)
    pointer = writer.seal(images_fingerprint(writer), accuracy)
    images, unreadable = count_images(writer)
    return Summary(
        cache=str(writer.location),
        images=images,
        unreadable=unreadable,
        views=len(plan.views),
        computed=shown,
        seconds=seconds,
        forward=forward,
        accuracy=accuracy,
        sizes={
            name: size_of(writer, group, images - unreadable)
            for name, group in writer.row_groups().items()
        },
        image_bytes=_image_bytes(writer),
        revision=pointer.number,
        revision_sha256=pointer.sha256,
        unlisted=left_out_of(plan.source),
        notes=(*notes_of(plan.source), *plan.notes),
    )
