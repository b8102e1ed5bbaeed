"""Arrays that describe the images of a cache, and belong to no teacher.

They are the samples, the images themselves in caches that have them, and arrays of views: mixing
partners, and the rendered squares in caches that have them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from logitcache.cache.format.arrays import resize
from logitcache.cache.format.images import create_images, image_fault, image_placement
from logitcache.cache.format.names import IMAGES, SAMPLES, SQUARES, VIEWS
from logitcache.cache.format.partners import (
    create_partners,
    mixed_views,
    partner_fault,
    partner_placement,
)
from logitcache.cache.format.samples import create_samples, sample_fault, sample_placement
from logitcache.cache.format.squares import (
    create_squares,
    square_fault,
    square_placement,
    stored_views,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from typing import Any

    from numpy.typing import NDArray

    from logitcache.cache.format.manifest import Manifest
    from logitcache.cache.format.placement import Placement
    from logitcache.cache.store.base import Location
    from logitcache.cache.store.zarr_store import RecordingStore

    FaultOf = Callable[[Mapping[str, NDArray[Any]]], str | None]

__all__ = [
    "DATA",
    "VIEW_ARRAYS",
    "create_data_arrays",
    "create_view_arrays",
    "data_faults",
    "data_placements",
    "resize_data_arrays",
]

DATA = frozenset({SAMPLES, IMAGES, VIEWS, SQUARES})
"""Paths of these groups, as commits name them."""


@dataclass(frozen=True)
class ViewArrays:
    """A kind of arrays that belong to a view.

    Attributes:
        views: Returns the ids that have such arrays for some views of a manifest; for all views
            where these are None.
        placement: Returns the placement of the arrays of an id.
        create: Creates the arrays of an id.
    """

    views: Callable[[Manifest, Collection[str] | None], list[str]]
    placement: Callable[[str, Manifest], Placement]
    create: Callable[[RecordingStore, Manifest, str], None]


VIEW_ARRAYS = {
    VIEWS: ViewArrays(
        mixed_views,
        lambda view_id, manifest: partner_placement(view_id, manifest.unit_rows),
        create_partners,
    ),
    SQUARES: ViewArrays(stored_views, square_placement, create_squares),
}
"""All kinds by the path of their group."""


def data_placements(manifest: Manifest, seen: Collection[str] | None = None) -> list[Placement]:
    """Return the placements of samples and images, and of the arrays of views.

    Args:
        manifest: What is declared.
        seen: Ids of the views; all that are declared by default.
    """
    placements = [sample_placement(manifest)]
    placements += [image_placement(manifest.images)] if manifest.images else []
    return placements + [
        kind.placement(view_id, manifest)
        for kind in VIEW_ARRAYS.values()
        for view_id in kind.views(manifest, seen)
    ]


def data_faults(manifest: Manifest) -> dict[str, FaultOf]:
    """Return, by path of the group, a function that returns what is wrong with decoded rows."""
    classes = len(manifest.data.class_names)
    return {
        SAMPLES: lambda arrays: sample_fault(arrays, classes),
        IMAGES: image_fault,
        VIEWS: partner_fault,
        SQUARES: square_fault,
    }


def create_data_arrays(location: Location, store: RecordingStore, manifest: Manifest) -> None:
    """Create the arrays of samples and images that do not exist yet."""
    create_samples(location, store, manifest)
    create_images(location, store, manifest)


def create_view_arrays(store: RecordingStore, before: Manifest, manifest: Manifest) -> None:
    """Create the arrays of the views that a manifest has and an earlier one had not."""
    for kind in VIEW_ARRAYS.values():
        known = kind.views(before, None)
        for view_id in kind.views(manifest, None):
            if view_id not in known:
                kind.create(store, manifest, view_id)


def resize_data_arrays(store: RecordingStore, before: Manifest, manifest: Manifest) -> None:
    """Make room for more rows in the arrays of all these groups.

    Args:
        store: Zarr store of the cache.
        before: What is declared, and has arrays.
        manifest: The same with more rows.
    """
    for placement in data_placements(before):
        for name in placement.specs:
            length = placement.length(name, manifest.capacity)
            resize(store, placement.path(name), (length,))
