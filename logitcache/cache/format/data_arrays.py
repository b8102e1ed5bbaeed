"""Arrays that describe the images of a cache, and belong to no teacher.

They are the samples, the images themselves in caches that have them, and the mixing partners.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from logitcache.cache.format.arrays import resize
from logitcache.cache.format.images import create_images, image_fault, image_placement
from logitcache.cache.format.names import IMAGES, SAMPLES, VIEWS
from logitcache.cache.format.partners import partner_fault, partner_placement
from logitcache.cache.format.samples import create_samples, sample_fault, sample_placement

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

    from numpy.typing import NDArray

    from logitcache.cache.format.manifest import Manifest
    from logitcache.cache.format.placement import Placement
    from logitcache.cache.store.base import Location
    from logitcache.cache.store.zarr_store import RecordingStore

    FaultOf = Callable[[Mapping[str, NDArray[Any]]], str | None]

__all__ = ["DATA", "create_data_arrays", "data_faults", "data_placements", "resize_data_arrays"]

DATA = frozenset({SAMPLES, IMAGES, VIEWS})
"""Paths of these groups, as commits name them."""


def data_placements(manifest: Manifest, mixed: Iterable[str]) -> list[Placement]:
    """Return the placements of samples, images and mixing partners.

    Args:
        manifest: What is declared.
        mixed: Ids of the views with partners.
    """
    placements = [sample_placement(manifest)]
    placements += [image_placement(manifest.images)] if manifest.images else []
    return placements + [partner_placement(view_id, manifest.unit_rows) for view_id in mixed]


def data_faults(manifest: Manifest) -> dict[str, FaultOf]:
    """Return, by path of the group, a function that returns what is wrong with decoded rows."""
    classes = len(manifest.data.class_names)
    return {
        SAMPLES: lambda arrays: sample_fault(arrays, classes),
        IMAGES: image_fault,
        VIEWS: partner_fault,
    }


def create_data_arrays(location: Location, store: RecordingStore, manifest: Manifest) -> None:
    """Create the arrays of samples and images that do not exist yet."""
    create_samples(location, store, manifest)
    create_images(location, store, manifest)


def resize_data_arrays(store: RecordingStore, manifest: Manifest, mixed: Iterable[str]) -> None:
    """Make room for more rows in the arrays of all these groups."""
    for placement in data_placements(manifest, mixed):
        for name in placement.specs:
            length = placement.length(name, manifest.capacity)
            resize(store, placement.path(name), (length,))
