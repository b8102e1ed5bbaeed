"""Selection of cached targets: teachers, layers and views, and the size of a window of rows."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from logitcache.cache.read.cached_images import CachedRows
from logitcache.cache.read.reader import open_cache
from logitcache.cache.read.shard_cache import DEFAULT_COPY_BYTES
from logitcache.cache.read.signature import signed_revision
from logitcache.cache.read.view_selection import choose_views
from logitcache.cache.store.open import locate
from logitcache.errors import UsageError, first_of
from logitcache.targets.classes.class_space import ClassSpace
from logitcache.targets.images.alignment import Alignment
from logitcache.targets.images.fingerprint_check import checked_rows
from logitcache.targets.images.image_rows import match_rows
from logitcache.targets.images.image_source import images_of
from logitcache.targets.reader import TargetsReader
from logitcache.targets.view_group import BASE, ViewGroup, shown_views, student_view
from logitcache.views.spec import ViewsConfig, parse_view

if TYPE_CHECKING:
    from collections.abc import Sequence

    from logitcache.cache.read.reader import Cache
    from logitcache.data.class_map import ClassMaps
    from logitcache.data.readers import ImageSet
    from logitcache.targets.images.image_rows import ImageRows
    from logitcache.targets.view_group import ShownView
    from logitcache.targets.view_scores import ViewSampler
    from logitcache.views.spec import View

__all__ = ["DEFAULT_TARGET_MEMORY", "Targets", "cached_targets", "whole_groups"]

DEFAULT_TARGET_MEMORY = 2**30
# the window in use, the one that is read ahead, and the one of batches that are being rendered
_WINDOWS_ALIVE = 3
_ROW_BYTES = (
    40  # per row in addition to targets: content digest, mixing partner, place in the order
)


@dataclass(frozen=True)
class Targets:
    """The cached targets of a loader.

    Attributes:
        reader: Reader of the targets.
        views: Views that all teachers and layers have, by id; an epoch shows one of them. With a
            group of views, those for which all views of the group are cached.
        window_rows: Maximum number of rows that are shuffled together, at least one unit.
        alignment: Test for outputs of other images; None if rows are shuffled as a control.
        student_views: Views that students see where those of the teachers are not known.
        sampler: Chooses a view for every row, which is shown next to one of ``views``; None to show
            these alone.
    """

    reader: TargetsReader
    views: dict[str, View]
    window_rows: int
    alignment: Alignment | None = None
    student_views: ViewsConfig = field(default_factory=ViewsConfig)
    sampler: ViewSampler | None = None

    @classmethod
    def of(
        cls,
        cache: Cache,
        teachers: Sequence[str] | None = None,
        features: Sequence[str] = (),
        views: Sequence[str] = (),
        show: Sequence[ShownView] = shown_views([BASE]),
        *,
        target_memory: int = DEFAULT_TARGET_MEMORY,
        shuffled: bool = False,
        class_map: ClassMaps | None = None,
        student_views: ViewsConfig | None = None,
    ) -> Targets:
        """Return targets of a cache.

        Args:
            cache: The cache.
            teachers: Names of the teachers; all teachers by default.
            features: Layers with cached features, as ``<teacher>/<tap>``.
            views: Views of the cache, as :func:`.choose_views` reads them; by default all views
                that all of these teachers and layers have.
            show: The views of a batch, see :mod:`.view_group`.
            target_memory: Maximum memory for targets in bytes, which limits how many rows are
                shuffled together.
            shuffled: Whether every row gets the targets of another row, as a control experiment.
            class_map: Class maps that lead to the classes of the student, see :class:`.ClassSpace`.
            student_views: Views that students see where those of the teachers are not known, since
                their outputs were imported; random crops and flips by default.

        Raises:
            UsageError: An unknown teacher, layer or view, no view that all of them have, or a
                class map or views of the student that do not fit.
        """
        names = list(cache.teachers) if teachers is None else list(teachers)
        if teachers is None and not names and not features:
            raise UsageError(
                "no teacher of this cache has logits",
                where=cache.url,
                expected=f"features of the cache: {first_of(list(cache.features))}",
                hint="use objectives on features, for example match; or select them in the "
                "loader: features=[...]",
            )
        # without targets, the views are those of all teachers
        anyone = names if names or features else list(cache.teachers)
        layers = features if anyone or features else list(cache.features)
        complete = view_ids = cache.views_of(anyone, layers)
        if views:
            view_ids = _chosen(cache, view_ids, views)
        parsed = {v: parse_view(cache.views[v], f"{cache.url}, view {v}") for v in view_ids}
        if not parsed:
            raise UsageError(
                "the cache has no view that all of these teachers and layers share",
                where=cache.url,
                got=", ".join([*names, *features]),
                hint="choose fewer teachers, or precompute their missing views",
            )
        _check_student_views(cache, parsed, student_views)
        parsed = whole_groups(parsed, show, complete, cache.url)
        classes = ClassSpace.of(cache, names, class_map)
        reader = TargetsReader(cache, names, features, shuffled=shuffled, classes=classes)
        left = target_memory - reader.held_bytes
        read = len({view.targets for view in show})
        affordable = left // (_WINDOWS_ALIVE * (read * reader.row_bytes + _ROW_BYTES))
        alignment = None if shuffled else Alignment.of(cache, names, classes.label_table)
        return cls(reader, parsed, max(1, affordable), alignment, student_views or ViewsConfig())

    def group(self, view: View, epoch: int, show: Sequence[ShownView]) -> ViewGroup:
        """Return the views of a batch with the targets of a view of the cache.

        If the pixels of that view are not known, students see one of their own, another one each
        epoch.

        Raises:
            UsageError: See :meth:`.ViewGroup.of`.
        """
        if view.is_known:
            return ViewGroup.of(view, show)
        base = student_view(self.student_views, epoch)
        return ViewGroup(ViewGroup.of(base, show).shown, (view,) * len(show))

    def window_units(self, unit_rows: int) -> int:
        """Return the number of units per window, for units of that many rows."""
        return max(1, self.window_rows // unit_rows)

    @property
    def blocks_alive(self) -> int:
        """Largest number of blocks of rows that the windows in memory belong to."""
        return _WINDOWS_ALIVE * self.window_units(self.reader.unit_rows) + 1

    def unit_rows(self, view: View) -> int:
        """Return the number of rows per unit of a window: a whole block if images are mixed."""
        return self.reader.unit_rows if view.mixing is None else self.reader.block_rows


def _check_student_views(
    cache: Cache, views: dict[str, View], student_views: ViewsConfig | None
) -> None:
    """Refuse views of the student that do not fit the targets.

    Raises:
        UsageError: All views of the teachers are known, or the views of the student mix images.
    """
    if student_views is None:
        return
    if all(view.is_known for view in views.values()):
        raise UsageError(
            "the cache has its own views, which students see as well",
            where=cache.url,
            hint="remove the settings of views, or the cache",
        )
    if any(view.mixing is not None for view in student_views.views()):
        raise UsageError(
            "the views of the student mix images, and the cache has outputs for single images only",
            where=cache.url,
            hint="remove mixup and cutmix from the settings of views",
        )


def whole_groups(
    views: dict[str, View], show: Sequence[ShownView], complete: Sequence[str], where: str
) -> dict[str, View]:
    """Return the base views for which all target views of the group are cached.

    Args:
        views: Views that may be shown, by id.
        show: The views of a batch.
        complete: Ids of all views that are cached.
        where: The cache, for messages.

    Raises:
        UsageError: There is none.
    """
    if all(view.student == view.targets == BASE for view in show):
        return views  # a view that is derived itself may be shown alone
    whole = {
        view_id: view
        for view_id, view in views.items()
        if view.base is None
        and all(member.id in complete for member in ViewGroup.of(view, show).read)
    }
    if not whole:
        raise UsageError(
            "no base view of the cache has all of these derived views",
            where=where,
            expected=", ".join(view.targets for view in show),
            hint="precompute these derived views (views.derive), or set show to others",
        )
    return whole


def _chosen(cache: Cache, complete: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """Return the ids of views that the user names; all of them have to be complete."""
    found = choose_views(list(cache.views), wanted, f"{cache.url}, use_views")
    lacking = [view_id for view_id in found if view_id not in complete]
    if lacking:
        raise UsageError(
            "some of these teachers and layers lack outputs in these views",
            where=cache.url,
            expected=f"views among {first_of(complete)}",
            got=first_of(lacking),
            hint="choose other views, or precompute the missing ones",
        )
    return found


def cached_targets(
    url: str,
    data: ImageSet | None,
    *,
    images: bool = True,
    counterparts: bool = False,
    subset: bool = False,
    tolerate_pixel_drift: int = 0,
    local_copy: str | None = None,
    local_copy_bytes: int = DEFAULT_COPY_BYTES,
    revision: str | None = None,
    signed_by: str | None = None,
    **selection: Any,
) -> tuple[ImageRows, Targets]:
    """Open a cache, match it with the available images, and check its view fingerprints.

    Args:
        url: Folder or URL of the cache.
        data: The images; None for those in the cache.
        images: Whether the images are needed; if not, ``data`` is not opened, and nothing is
            rendered.
        counterparts: Whether the images are others than those of the cache, with the same keys.
            Their content and the view fingerprints are then not compared.
        subset: Whether images of the cache may be missing.
        tolerate_pixel_drift: Largest accepted difference between pixel values, 0 to 255, of view
            fingerprints rendered on this machine and in the cache.
        local_copy: Folder for local copies of shards of a remote cache; the user's cache folder by
            default.
        local_copy_bytes: Maximum size of that folder; 0 for no copies.
        revision: sha256 of the required revision, or its first 12 or more digits.
        signed_by: File with the public key that has to have signed the revision.
        selection: Arguments of :meth:`Targets.of`.
    """
    if signed_by is not None:  # before anything else of the cache is read
        revision = signed_revision(locate(url), signed_by, revision)
    cache = open_cache(
        url, local_copy=local_copy, local_copy_bytes=local_copy_bytes, revision=revision
    )
    targets = Targets.of(cache, **selection)
    if not images:
        rows = replace(match_rows(cache, CachedRows(cache)), squares=None)
        return rows.in_classes(targets.reader.classes), targets
    source = images_of(cache, data, counterparts=counterparts)
    if counterparts:
        rows = match_rows(cache, source, subset=subset, counterparts=True)
        return rows.in_classes(targets.reader.classes), targets
    rows = checked_rows(cache, source, subset=subset, tolerate_pixel_drift=tolerate_pixel_drift)
    return rows.in_classes(targets.reader.classes), targets
