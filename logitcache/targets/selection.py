"""Selection of cached targets: teachers, layers and views, and the rows shuffled together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from logitcache.cache.read.reader import open_cache
from logitcache.cache.read.shard_cache import DEFAULT_COPY_BYTES
from logitcache.cache.read.view_selection import choose_views
from logitcache.data.readers import DataConfig, open_source_for
from logitcache.errors import UsageError
from logitcache.targets.alignment import Alignment
from logitcache.targets.fingerprint_check import checked_rows
from logitcache.targets.reader import TargetsReader
from logitcache.targets.view_group import BASE, check_show, view_group
from logitcache.views.spec import parse_view

if TYPE_CHECKING:
    from collections.abc import Sequence

    from logitcache.cache.read.reader import Cache
    from logitcache.data.source import Source
    from logitcache.targets.image_rows import ImageRows
    from logitcache.views.spec import View

__all__ = ["DEFAULT_TARGET_MEMORY", "Targets", "cached_targets"]

DEFAULT_TARGET_MEMORY = 2**30
# the one in use, the one read ahead (of the next epoch, at the end), what the renderer still holds
_WINDOWS_ALIVE = 3
_ROW_BYTES = 40  # of a window besides its targets: digest, partner, and place in the order


@dataclass(frozen=True)
class Targets:
    """Where the targets of a loader come from.

    Attributes:
        reader: What reads them.
        views: The views that all the teachers and taps have, one per epoch, by id; with a group of
            views, those of which all views of the group are cached.
        window_rows: Rows that are shuffled together, if they are whole units.
        alignment: The alarm for outputs of other images; None where they are other ones on purpose.
    """

    reader: TargetsReader
    views: dict[str, View]
    window_rows: int
    alignment: Alignment | None = None

    @classmethod
    def of(
        cls,
        cache: Cache,
        teachers: Sequence[str] | None = None,
        features: Sequence[str] = (),
        *,
        views: Sequence[str] = (),
        show: Sequence[str] = (BASE,),
        target_memory: int = DEFAULT_TARGET_MEMORY,
        shuffled: bool = False,
    ) -> Targets:
        """Choose targets of a cache.

        Args:
            cache: The cache.
            teachers: Names of the teachers; all teachers by default.
            features: Which taps, as ``<teacher>/<tap>``.
            views: Which views of the cache, as :func:`.choose_views` reads them; by default all
                that all of these have.
            show: Names of the views of a batch, see :mod:`.view_group`.
            target_memory: Bytes that targets may take: how many rows are shuffled together.
            shuffled: Whether every row gets the targets of another row, as a control.

        Raises:
            UsageError: An unknown teacher, tap or view, or no view that all of them have.
        """
        names = list(cache.teachers) if teachers is None else list(teachers)
        anyone = names if names or features else list(cache.teachers)
        complete = view_ids = cache.views_of(anyone, features)
        if views:
            view_ids = _chosen(cache, view_ids, views)
        parsed = {v: parse_view(cache.views[v], f"{cache.url}, view {v}") for v in view_ids}
        if not parsed:
            raise UsageError(
                "no view that all of these teachers saw",
                where=cache.url,
                got=", ".join([*names, *features]),
            )
        parsed = _with_whole_groups(cache, parsed, show, complete)
        reader = TargetsReader(cache, names, features, shuffled=shuffled)
        left = target_memory - reader.held_bytes
        affordable = left // (_WINDOWS_ALIVE * (len(show) * reader.row_bytes + _ROW_BYTES))
        alignment = None if shuffled else Alignment.of(cache, names)
        return cls(reader, parsed, max(1, affordable), alignment)

    def window_units(self, unit_rows: int) -> int:
        """Return how many units of that many rows make a window."""
        return max(1, self.window_rows // unit_rows)

    @property
    def blocks_alive(self) -> int:
        """The most blocks of U rows that the windows in memory may have rows of."""
        return _WINDOWS_ALIVE * self.window_units(self.reader.unit_rows) + 1

    def unit_rows(self, view: View) -> int:
        """Return the rows of a unit of the windows: whole blocks where images are mixed."""
        return self.reader.unit_rows if view.mixing is None else self.reader.block_rows


def _with_whole_groups(
    cache: Cache, views: dict[str, View], show: Sequence[str], complete: Sequence[str]
) -> dict[str, View]:
    """Return the views of which all views of the group are cached."""
    check_show(show)
    if list(show) == [BASE]:
        return views
    whole = {
        view_id: view
        for view_id, view in views.items()
        if all(member.id in complete for member in view_group(view, show))
    }
    if not whole:
        raise UsageError(
            "no view of the cache has all of these derived views",
            where=cache.url,
            expected=", ".join(show),
            hint="precompute with views.derive, or show others",
        )
    return whole


def _chosen(cache: Cache, complete: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """Return views by their names, all of which have to be among those that are complete."""
    found = choose_views(list(cache.views), wanted)
    lacking = [view_id for view_id in found if view_id not in complete]
    if lacking:
        raise UsageError(
            "not all of these teachers and features have these views",
            where=cache.url,
            expected=f"some of {', '.join(complete[:5])}",
            got=", ".join(lacking[:5]),
        )
    return found


def cached_targets(
    url: str,
    data: DataConfig | Source,
    teachers: Sequence[str] | None = None,
    features: Sequence[str] = (),
    *,
    views: Sequence[str] = (),
    show: Sequence[str] = (BASE,),
    target_memory: int = DEFAULT_TARGET_MEMORY,
    shuffled: bool = False,
    subset: bool = False,
    tolerate_pixel_drift: int = 0,
    local_copy: str | None = None,
    local_copy_bytes: int = DEFAULT_COPY_BYTES,
    revision: str | None = None,
) -> tuple[ImageRows, Targets]:
    """Open a cache, match it with the available images, and render its probes.

    Args:
        url: The cache.
        data: The images.
        teachers: Names of the teachers; all teachers by default, none for an empty list.
        features: Which taps of their networks, as ``<teacher>/<tap>``.
        views: Which views of the cache; all by default.
        show: Names of the views of a batch, see :mod:`.view_group`.
        target_memory: Bytes that targets may take.
        shuffled: Whether every row gets the targets of another row, as a control.
        subset: Whether images of the cache may be missing.
        tolerate_pixel_drift: Largest difference of a level, 0 to 255, between probes rendered here
            and when the cache was made.
        local_copy: Folder in which shards of a distant cache are kept; the user's cache folder by
            default.
        local_copy_bytes: What that folder may take; 0 to keep nothing.
        revision: sha256 of the revision that it must have, or the first 12 digits or more.
    """
    cache = open_cache(
        url, local_copy=local_copy, local_copy_bytes=local_copy_bytes, revision=revision
    )
    targets = Targets.of(
        cache,
        teachers,
        features,
        views=views,
        show=show,
        target_memory=target_memory,
        shuffled=shuffled,
    )
    source = open_source_for(data, (), "", listing=cache.listing)
    rows = checked_rows(cache, source, subset=subset, tolerate_pixel_drift=tolerate_pixel_drift)
    return rows, targets
