"""Arrays of the images of a cache: keys, hashes, digests, sizes, labels and status.

Where an image may have several classes, two more arrays have a row each: the number of its classes,
and their numbers, followed by zeros.

Shapes: N rows, W the width of a row of classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from logitcache.cache.format.arrays import create_array, create_group
from logitcache.cache.format.manifest import MAX_LABEL_WIDTH
from logitcache.cache.format.names import (
    NO_VIEW,
    SAMPLE_ARRAYS,
    SAMPLES,
    Status,
    max_key_bytes,
)
from logitcache.cache.format.placement import Placement
from logitcache.encoding.arrays import ArraySpec
from logitcache.errors import DataError
from logitcache.label_sets import LabelSets

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from numpy.typing import NDArray

    from logitcache.cache.format.manifest import Manifest
    from logitcache.cache.store.base import Location
    from logitcache.cache.store.zarr_store import RecordingStore

__all__ = [
    "Samples",
    "check_key_bytes",
    "check_label_width",
    "create_samples",
    "label_set_arrays",
    "label_width",
    "sample_fault",
    "sample_placement",
    "sample_specs",
    "samples_from",
]

_KEYS_AT_ONCE = 4096  # rows of an inner chunk at most
_LEAST_WIDTH = 4


def sample_specs(manifest: Manifest) -> dict[str, ArraySpec | None]:
    """Return the arrays of the samples of a cache by name; None for strings."""
    return {**SAMPLE_ARRAYS, **label_specs(manifest.data.label_width), "key": None}


def label_specs(width: int | None) -> dict[str, ArraySpec]:
    """Return the arrays of label sets by name; nothing where there are none."""
    if width is None:
        return {}
    return {
        "label_count": ArraySpec((), "int32", -1),
        "label_ids": ArraySpec((width,), "int32", 0),
    }


@dataclass(frozen=True)
class Samples:
    """Some rows of the samples, padding included.

    Attributes:
        start: Row number of the first one.
        keys: Names of the images, object array (N,).
        hashes: Hashes of the keys, uint64 (N,).
        digests: Digests of the images, uint8 (N, 16).
        sizes: Sizes of the image files in bytes, int64 (N,).
        labels: Classes, int32 (N,); -1 without one.
        label_sets: Sets of classes; None where an image has one class at most.
        status: uint8 (N,), see :class:`~logitcache.cache.format.names.Status`; withdrawals applied.
    """

    start: int
    keys: NDArray[np.object_]
    hashes: NDArray[np.uint64]
    digests: NDArray[np.uint8]
    sizes: NDArray[np.int64]
    labels: NDArray[np.int32]
    status: NDArray[np.uint8]
    label_sets: LabelSets | None = None

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """Rows of images, readable or not, ascending."""
        return self.start + np.flatnonzero(self.status != Status.PADDING)

    @cached_property
    def readable(self) -> NDArray[np.int64]:
        """Rows of readable images that were not withdrawn, ascending."""
        return self.start + np.flatnonzero(self.status == Status.OK)

    @property
    def unreadable(self) -> int:
        """Number of images that could not be decoded."""
        return int((self.status == Status.UNREADABLE).sum())

    @property
    def withdrawn(self) -> int:
        """Number of images that were withdrawn."""
        return int((self.status == Status.WITHDRAWN).sum())


def create_samples(location: Location, store: RecordingStore, manifest: Manifest) -> None:
    """Create the arrays of the samples that do not exist yet."""
    if location.size(f"{SAMPLES}/zarr.json") is None:
        create_group(store, SAMPLES, {"unit_rows": manifest.unit_rows})
    for name, spec in sample_specs(manifest).items():
        path = f"{SAMPLES}/{name}"
        if location.size(f"{path}/zarr.json") is None:
            create_array(store, path, spec, (manifest.capacity,), manifest.unit_rows)


def sample_placement(manifest: Manifest) -> Placement:
    """Return the placement of the samples of a cache."""
    return Placement(SAMPLES, NO_VIEW, manifest.unit_rows, None, sample_specs(manifest))


def label_width(sets: LabelSets | None, num_classes: int, where: object) -> int | None:
    """Return the width for the classes of an image in a new cache: room for twice as many.

    Fill values take hardly any bytes, and images that are added later may have more classes.

    Args:
        sets: Classes of the first images; None where an image has one class at most.
        num_classes: Number of classes.
        where: The image set, for messages.

    Raises:
        DataError: An image has more than :data:`.MAX_LABEL_WIDTH` classes.
    """
    if sets is None:
        return None
    most = int(sets.counts.max(initial=0))
    check_label_width(sets, MAX_LABEL_WIDTH, where)
    wide = max(_LEAST_WIDTH, 1 << (2 * most - 1).bit_length())
    return max(1, min(wide, num_classes, MAX_LABEL_WIDTH))


def check_label_width(sets: LabelSets | None, width: int | None, where: object) -> None:
    """Check that a cache has room for the classes of images.

    Raises:
        DataError: One image has more classes.
    """
    most = 0 if sets is None else int(sets.counts.max(initial=0))
    if width is not None and most > width:
        raise DataError(
            "an image has more classes than the cache has room for",
            where=where,
            expected=f"at most {width} classes of an image",
            got=f"{most} classes",
            hint="remove classes from the image, or create a new cache with it",
        )


def label_set_arrays(sets: LabelSets | None, width: int | None) -> dict[str, NDArray[np.int32]]:
    """Return the arrays of label sets by name; nothing where there are none."""
    if sets is None or width is None:
        return {}
    count_N, ids_NW = sets.rows(width)
    return {"label_count": count_N, "label_ids": ids_NW}


def _label_sets_fault(arrays: Mapping[str, NDArray[Any]], num_classes: int) -> str | None:
    """Return why sets of classes cannot be used; None if they can, or are not there."""
    if not {"label_count", "label_ids"} <= arrays.keys():
        return None
    count_N, ids_NW = arrays["label_count"], arrays["label_ids"]
    if len(count_N) and not -1 <= count_N.min() <= count_N.max() <= ids_NW.shape[1]:
        return f"from {count_N.min()} to {count_N.max()} classes of an image"
    used_NW = np.arange(ids_NW.shape[1]) < count_N[:, None]
    ascending = ~used_NW[:, 1:] | (ids_NW[:, 1:] > ids_NW[:, :-1])
    ids = ids_NW[used_NW]
    within = not len(ids) or 0 <= ids.min() <= ids.max() < num_classes
    if not within or not ascending.all() or ids_NW[~used_NW].any():
        return f"sets of classes that are not ascending numbers below {num_classes}"
    return None


def check_key_bytes(keys_N: NDArray[np.object_]) -> None:
    """Check that readers accept the names of the images of a unit.

    Raises:
        DataError: They are longer.
    """
    for start in range(0, len(keys_N), _KEYS_AT_ONCE):
        keys = keys_N[start : start + _KEYS_AT_ONCE]
        size = sum(len(str(key).encode()) + 4 for key in keys)
        if size > max_key_bytes(len(keys)):
            raise DataError(
                "the names of images are too long",
                where=f"{keys[0]} and the next {len(keys) - 1}",
                expected=f"at most {max_key_bytes(len(keys))} bytes together",
                got=f"{size} bytes",
                hint="shorten the names of files and folders",
            )


def sample_fault(arrays: Mapping[str, NDArray[Any]], num_classes: int) -> str | None:
    """Return which labels or status values are out of range; None if none are.

    Args:
        arrays: Some of the arrays by name.
        num_classes: Number of class names.
    """
    labels, status = arrays.get("label"), arrays.get("status")
    if labels is not None and len(labels):
        least, most = int(labels.min()), int(labels.max())
        if least < -1 or most >= max(num_classes, 0):
            return f"labels from {least} to {most} for {num_classes} classes"
    if status is not None and len(status) and status.max() >= Status.WITHDRAWN:
        return f"a status of {status.max()} instead of at most {Status.UNREADABLE}"
    return _label_sets_fault(arrays, num_classes)


def samples_from(
    arrays: Mapping[str, NDArray[Any]], start: int, withdrawn: Collection[str] = ()
) -> Samples:
    """Return samples from their arrays.

    Args:
        arrays: By name, as they are stored.
        start: Row number of the first one.
        withdrawn: Keys of images that were withdrawn.
    """
    status = arrays["status"]
    if withdrawn:
        keys = arrays["key"]
        gone = np.fromiter((key in withdrawn for key in keys), np.bool_, len(keys))
        status = np.where(gone, Status.WITHDRAWN, status).astype(np.uint8)
    return Samples(
        start=start,
        keys=arrays["key"],
        hashes=arrays["hash"],
        digests=arrays["digest"],
        sizes=arrays["bytes"],
        labels=arrays["label"],
        status=status,
        label_sets=LabelSets.of_rows(arrays["label_count"], arrays["label_ids"])
        if "label_ids" in arrays
        else None,
    )
