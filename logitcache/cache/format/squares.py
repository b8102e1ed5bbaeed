"""Rendered views in a cache: a square of each image in each view, encoded as JPEG.

The squares of a view are stored as the images of a cache are: the bytes of a unit as one string in
pages, the end of each square in it, and its digest. A view that is derived from another one has no
squares of its own: its operations are applied to those of the other one, and so is a mix.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from logitcache.cache.format.arrays import create_array, create_group
from logitcache.cache.format.images import IMAGE_ARRAYS, image_fault
from logitcache.cache.format.ledger import sealed_bytes
from logitcache.cache.format.names import SQUARES
from logitcache.cache.format.placement import Placement
from logitcache.encoding.arrays import ArraySpec
from logitcache.views.recipe import UNKNOWN, root_id

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from numpy.typing import NDArray

    from logitcache.cache.format.manifest import Manifest
    from logitcache.cache.store.base import Location
    from logitcache.cache.store.zarr_store import RecordingStore

__all__ = [
    "SQUARE_ARRAYS",
    "create_squares",
    "square_arrays",
    "square_bytes",
    "square_fault",
    "square_placement",
    "stored_views",
]

SQUARE_ARRAYS = {
    "content": IMAGE_ARRAYS["content"],
    "end": IMAGE_ARRAYS["end"],
    "digest": ArraySpec((16,), "uint8", 0, "raw"),
}
"""Bytes of all squares of a unit; offset of the end of each in them; digest of each."""


def stored_views(manifest: Manifest, among: Collection[str] | None = None) -> list[str]:
    """Return the ids under which the squares of some views are stored, each once.

    Args:
        manifest: What is declared.
        among: Ids of these views; all by default.
    """
    if manifest.squares is None:
        return []
    roots = [
        root_id(recipe)
        for view_id, recipe in manifest.views.items()
        if among is None or view_id in among
        if all(operation["op"] != UNKNOWN for operation in recipe["operations"])
    ]
    return list(dict.fromkeys(roots))


def square_placement(view_id: str, manifest: Manifest) -> Placement:
    """Return the placement of the squares of a view that is not derived."""
    # a ledger may name squares of a cache whose manifest does not declare them: that is a fault
    unit_rows = manifest.unit_rows if manifest.squares is None else manifest.squares.unit_rows
    specs = {f"{view_id}/{name}": spec for name, spec in SQUARE_ARRAYS.items()}
    return Placement(SQUARES, view_id, unit_rows, None, specs)


def create_squares(store: RecordingStore, manifest: Manifest, view_id: str) -> None:
    """Create the arrays of the squares of a view."""
    placement = square_placement(view_id, manifest)
    create_group(store, placement.holder, {"unit_rows": placement.unit_rows})
    for name, spec in placement.specs.items():
        create_array(store, placement.path(name), spec, (manifest.capacity,), placement.unit_rows)


def square_arrays(view_id: str, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return the arrays of a unit under the names that their placement has."""
    return {f"{view_id}/{name}": array for name, array in arrays.items()}


def square_fault(arrays: Mapping[str, NDArray[Any]]) -> str | None:
    """Return which ends of squares are impossible; None if none are."""
    return image_fault({name.rpartition("/")[2]: array for name, array in arrays.items()})


def square_bytes(location: Location, view_ids: Sequence[str]) -> int:
    """Return the bytes of the squares of some views; sealed ones where keys cannot be listed."""
    if not location.lists:
        return sealed_bytes(location, SQUARES, view_ids)
    return sum(location.bytes_below(f"{SQUARES}/{view_id}") for view_id in view_ids)
