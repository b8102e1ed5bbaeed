"""Arrays of the images of a cache: keys, hashes, digests, sizes, labels and status."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from logitcache.cache.format.arrays import create_array, create_group
from logitcache.cache.format.names import (
    NO_VIEW,
    SAMPLE_ARRAYS,
    SAMPLES,
    Status,
    max_key_bytes,
)
from logitcache.cache.format.placement import Placement
from logitcache.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from numpy.typing import NDArray

    from logitcache.cache.format.manifest import Manifest
    from logitcache.cache.store.base import Location
    from logitcache.cache.store.zarr_store import RecordingStore

__all__ = [
    "Samples",
    "check_key_bytes",
    "create_samples",
    "sample_fault",
    "sample_placement",
    "samples_from",
]

_SPECS = {**SAMPLE_ARRAYS, "key": None}
_KEYS_AT_ONCE = 4096  # rows of an inner chunk at most


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
        status: uint8 (N,), see :class:`~logitcache.cache.format.names.Status`; withdrawals applied.
    """

    start: int
    keys: NDArray[np.object_]
    hashes: NDArray[np.uint64]
    digests: NDArray[np.uint8]
    sizes: NDArray[np.int64]
    labels: NDArray[np.int32]
    status: NDArray[np.uint8]

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
    for name, spec in _SPECS.items():
        path = f"{SAMPLES}/{name}"
        if location.size(f"{path}/zarr.json") is None:
            create_array(store, path, spec, (manifest.capacity,), manifest.unit_rows)


def sample_placement(unit_rows: int) -> Placement:
    """Return the placement of the samples of a cache with units of so many rows."""
    return Placement(SAMPLES, NO_VIEW, unit_rows, None, _SPECS)


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
    return None


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
    )
