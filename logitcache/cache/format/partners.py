"""Mixing partners: one array per view that mixes, by row, as an offset in the block.

Stored although it could be drawn again, so that a reader needs no other rows of the unit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from logitcache.cache.format.arrays import create_array, create_group
from logitcache.cache.format.names import VIEWS
from logitcache.cache.format.placement import Placement
from logitcache.encoding.arrays import ArraySpec
from logitcache.errors import CacheDamaged

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from numpy.typing import NDArray

    from logitcache.cache.format.manifest import Manifest
    from logitcache.cache.store.zarr_store import RecordingStore

__all__ = [
    "create_partners",
    "encode_partners",
    "mixed_views",
    "partner_array",
    "partner_fault",
    "partner_group",
    "partner_placement",
    "partner_rows",
]

_SPEC = ArraySpec((), "uint16", 65535)
_MIX = "mix"


def mixed_views(manifest: Manifest, among: Collection[str] | None = None) -> list[str]:
    """Return the ids of the views that mix, in the order of the manifest.

    Args:
        manifest: What is declared.
        among: Ids to choose from; all by default.
    """
    return [
        view_id
        for view_id, recipe in manifest.views.items()
        if (among is None or view_id in among)
        and any(operation["op"] == _MIX for operation in recipe["operations"])
    ]


def partner_group(view_id: str) -> str:
    """Return the path of a view's group."""
    return f"{VIEWS}/{view_id}"


def partner_array(view_id: str) -> str:
    """Return the path of a view's partners."""
    return f"{VIEWS}/{view_id}/partner"


def create_partners(store: RecordingStore, manifest: Manifest, view_id: str) -> None:
    """Make the array of a view that mixes."""
    create_group(store, partner_group(view_id), {"unit_rows": manifest.unit_rows})
    leading = (manifest.capacity,)
    create_array(store, partner_array(view_id), _SPEC, leading, manifest.unit_rows)


def encode_partners(offsets_U: NDArray[np.int64]) -> NDArray[np.uint16]:
    """Return the offsets of a unit as they are stored; -1 becomes the fill."""
    return np.where(offsets_U < 0, _SPEC.fill, offsets_U).astype(np.uint16)


def partner_placement(view_id: str, unit_rows: int) -> Placement:
    """Return the placement of the partners of a view."""
    return Placement(VIEWS, view_id, unit_rows, None, {f"{view_id}/partner": _SPEC})


def partner_fault(arrays: Mapping[str, NDArray[Any]]) -> str | None:
    """Return what is wrong with the stored offsets of a unit; None if nothing is.

    Each mixed row has to be the partner of its partner; the others have the fill value, which is
    an offset as well where a unit has 65536 rows.
    """
    for stored_U in arrays.values():
        offsets = stored_U.astype(np.int64)
        shown = np.flatnonzero(offsets != _SPEC.fill)
        # clipped: an offset out of range is reported below instead of raising IndexError
        back = offsets[np.minimum(offsets[shown], len(offsets) - 1)]
        if (offsets[shown] >= len(offsets)).any() or (back != shown).any():
            return "the mixing partners of a view are not pairs"
    return None


def partner_rows(
    view_id: str, unit: int, stored_U: NDArray[Any], readable_U: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Return the row that each row of a unit is mixed with, int64 (U,); -1 where it is not shown.

    Args:
        view_id: A view that mixes.
        unit: Number of the unit.
        stored_U: Offsets as they are stored.
        readable_U: Which of its rows are readable; distinguishes the fill value from offset 65535.

    Raises:
        CacheDamaged: The offsets are not a matching of these rows.
    """
    unit_rows = len(readable_U)
    start, own = unit * unit_rows, np.flatnonzero(readable_U)
    offsets = np.where(readable_U, stored_U.astype(np.int64), -1)
    back = offsets[np.clip(offsets[own], 0, unit_rows - 1)]
    if (offsets >= unit_rows).any() or not (back == own)[back >= 0].all():
        # a partner without an offset is no fault: its image may have been withdrawn
        raise CacheDamaged(
            "the mixing partners of a view are not pairs",
            where=partner_array(view_id),
            expected="each readable row is the partner of its partner",
        )
    return np.where(offsets < 0, -1, start + offsets)
