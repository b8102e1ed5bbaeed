"""Merges: the rows, views, teachers and features of several caches in one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from logitcache.cache.store.open import locate
from logitcache.errors import DataMismatch, UsageError, first_of
from logitcache.share.assemble import assemble
from logitcache.share.conflicts import declared_conflicts, image_conflicts, output_conflicts
from logitcache.share.kept_reads import KeptShards
from logitcache.share.plan import make_plan
from logitcache.share.slicing import DerivedSummary, refuse_same_place, sealed_groups, summary_of
from logitcache.share.source import SourceCache
from logitcache.share.union_rows import union_of_rows

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Sequence

    from logitcache.cache.store.base import Location
    from logitcache.cache.write.claims import Wait
    from logitcache.share.assemble import Progress

__all__ = ["merge_caches"]


def merge_caches(
    sources: Sequence[str | os.PathLike[str] | Location],
    destination: str | os.PathLike[str] | Location,
    *,
    append: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
    on_wait: Callable[[Wait], None] | None = None,
) -> DerivedSummary:
    """Write everything that several caches have as one cache.

    The arrays are those of a cache that was computed of all images, views and teachers at once.
    Units of the same rows are copied as bytes. A call that was interrupted can be repeated.

    Args:
        sources: Two or more sealed caches of one data policy, which are only read. Images are the
            same if their keys are.
        destination: Location of the new cache: empty, or with a part of the same merge.
        append: Whether images are added as further segments instead of ordered by hash.
        on_progress: Called after every unit.
        on_wait: Called while another process holds the lock of the destination.

    Raises:
        UsageError: There are fewer than two caches, the destination has another cache, or blocks of
            a view that mixes images would have other rows.
        DataMismatch: The caches contradict each other; nothing is written.
        CacheDamaged: An object of a source is not the one that was committed.
    """
    if len(sources) < 2:
        raise UsageError("a merge needs two caches or more", got=f"{len(sources)}")
    location = locate(destination, write=True)
    kept = KeptShards()
    opened = [SourceCache(source, kept=kept) for source in sources]
    refuse_same_place(opened, location)
    chosen = [sealed_groups(source) for source in opened]
    _refuse(declared_conflicts(opened, chosen))
    rows = union_of_rows(opened, append=append)
    _refuse(image_conflicts(opened, rows))
    plan = make_plan(opened, rows, chosen, "merge", {"append": True} if append else {})
    _refuse(output_conflicts(plan))
    done = assemble(plan, location, on_progress=on_progress, on_wait=on_wait)
    return summary_of(plan, location, done, [])


def _refuse(conflicts: Iterable[str]) -> None:
    found = list(conflicts)
    if found:
        raise DataMismatch(
            "the caches cannot be merged",
            got=first_of(found, 8),
            expected="the same classes and rules of data, the same teachers under a name, views "
            "that all images have, and equal values where caches overlap",
            hint="leave out what is in the way with logitcache slice",
        )
