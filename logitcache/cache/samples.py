"""What a cache knows of its images."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from logitcache.cache.arrays import create_array, create_group, read_array, resize
from logitcache.cache.format import SAMPLE_ARRAYS, SAMPLES, Status

if TYPE_CHECKING:
    from collections.abc import Collection

    from numpy.typing import NDArray
    from zarr.abc.store import Store

    from logitcache.cache.location import Location
    from logitcache.cache.manifest import Manifest
    from logitcache.cache.store import RecordingStore

__all__ = ["Samples", "create_samples", "read_keys", "read_samples", "resize_samples"]

_SPECS = {**SAMPLE_ARRAYS, "key": None}


@dataclass(frozen=True)
class Samples:
    """Some rows of the samples, padding included.

    Attributes:
        start: Row of the first one.
        keys: Names, object array (N,).
        hashes: uint64 (N,).
        digests: uint8 (N, 16).
        sizes: Bytes of the image as stored, int64 (N,).
        labels: int32 (N,), -1 without one.
        status: uint8 (N,), see :class:`~logitcache.cache.format.Status`; withdrawals applied.
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
        """Rows that hold an image, readable or not, ascending."""
        return self.start + np.flatnonzero(self.status != Status.PADDING)

    @cached_property
    def readable(self) -> NDArray[np.int64]:
        """Rows that hold a readable image that was not withdrawn, ascending."""
        return self.start + np.flatnonzero(self.status == Status.OK)

    @property
    def unreadable(self) -> int:
        """How many images could not be decoded."""
        return int((self.status == Status.UNREADABLE).sum())

    @property
    def withdrawn(self) -> int:
        """How many images were withdrawn."""
        return int((self.status == Status.WITHDRAWN).sum())


def create_samples(location: Location, store: RecordingStore, manifest: Manifest) -> None:
    """Make the samples' arrays, or those that an interrupted run left out."""
    if location.size(f"{SAMPLES}/zarr.json") is None:
        create_group(store, SAMPLES, {"unit_rows": manifest.unit_rows})
    for name, spec in _SPECS.items():
        path = f"{SAMPLES}/{name}"
        if location.size(f"{path}/zarr.json") is None:
            create_array(store, path, spec, (manifest.capacity,), manifest.unit_rows)


def resize_samples(store: RecordingStore, manifest: Manifest) -> None:
    """Make room for more rows."""
    for name in _SPECS:
        resize(store, f"{SAMPLES}/{name}", (manifest.capacity,))


def read_samples(store: Store, start: int, stop: int, withdrawn: Collection[str] = ()) -> Samples:
    """Read rows [start, stop) of the samples.

    Args:
        store: The cache.
        start: First row.
        stop: One past the last row.
        withdrawn: Keys of images that were withdrawn.
    """
    rows = slice(start, stop)
    read: dict[str, Any] = {
        name: read_array(store, f"{SAMPLES}/{name}", rows, spec)
        for name, spec in SAMPLE_ARRAYS.items()
    }
    keys = read_keys(store, start, stop)
    if withdrawn:
        gone = np.fromiter((key in withdrawn for key in keys), np.bool_, len(keys))
        read["status"] = np.where(gone, Status.WITHDRAWN, read["status"]).astype(np.uint8)
    return Samples(
        start=start,
        keys=keys,
        hashes=read["hash"],
        digests=read["digest"],
        sizes=read["bytes"],
        labels=read["label"],
        status=read["status"],
    )


def read_keys(store: Store, start: int, stop: int) -> NDArray[np.object_]:
    """Read the names of rows [start, stop)."""
    return read_array(store, f"{SAMPLES}/key", slice(start, stop), None).astype(object)
