"""What a cache knows of its images."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from logitcache.cache.arrays import open_array
from logitcache.cache.format import SAMPLE_ARRAYS, SAMPLES, Status

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from logitcache.cache.location import RecordingStore

__all__ = ["Samples", "read_samples"]


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
        status: uint8 (N,), see :class:`~logitcache.cache.format.Status`.
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
        """Rows that hold a readable image, ascending."""
        return self.start + np.flatnonzero(self.status == Status.OK)


def read_samples(store: RecordingStore, start: int, stop: int) -> Samples:
    """Read rows [start, stop) of the samples."""
    read: dict[str, Any] = {
        name: np.asarray(open_array(store, f"{SAMPLES}/{name}")[start:stop])
        for name in SAMPLE_ARRAYS
    }
    keys = np.asarray(open_array(store, f"{SAMPLES}/key")[start:stop], dtype=object)
    return Samples(
        start=start,
        keys=keys,
        hashes=read["hash"],
        digests=read["digest"],
        sizes=read["bytes"],
        labels=read["label"],
        status=read["status"],
    )
