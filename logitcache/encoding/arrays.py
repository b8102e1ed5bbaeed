"""Specifications of encoded arrays: shape per row, dtype and fill value.

Shapes: N rows, C classes, K stored classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

__all__ = ["ArraySpec", "Encoded", "encode_in_parts", "filled"]

_NUMBERS_AT_ONCE = 2**17  # in float64 they fit into the CPU cache

Encoded = dict[str, "NDArray[np.generic]"]
"""Encoded rows by array name; the first axis is the row."""


@dataclass(frozen=True)
class ArraySpec:
    """One array of a group, without its axes for views and rows.

    Attributes:
        shape: Shape of one row.
        dtype: Name of the numpy dtype, little-endian.
        fill: Value of rows without outputs; NaN as a float.
        codec: ``shuffled`` (blosc, zstd 1, shuffle of the bytes of a number), ``transposed`` (the
            same with the bytes of a row, at most 255, as an element: all first bytes, then all
            second ones) or ``raw``; a crc32c follows each.
        inner: Largest number of rows of an inner chunk, a power of two.
        whole: Whether a shard has a single inner chunk, whatever its number of rows.
        page: Bytes of an inner chunk of an array that has, instead of a row per image, one string
            of bytes per unit; 0 for arrays with rows.
    """

    shape: tuple[int, ...]
    dtype: str
    fill: float
    codec: Literal["shuffled", "transposed", "raw"] = "shuffled"
    inner: int = 4096
    whole: bool = False
    page: int = 0

    @property
    def row_bytes(self) -> int:
        """Bytes of one row before compression."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize

    @property
    def element_bytes(self) -> int:
        """Size of the elements that blosc shuffles."""
        return self.row_bytes if self.codec == "transposed" else np.dtype(self.dtype).itemsize


def encode_in_parts(encode: Callable[[slice], Encoded], rows: int, num_classes: int) -> Encoded:
    """Return all rows encoded, a few at a time so that they fit into the CPU cache.

    Args:
        encode: Function that encodes a slice of the rows.
        rows: Number of rows.
        num_classes: Numbers of a row, C.
    """
    step = max(1, _NUMBERS_AT_ONCE // num_classes)
    parts = [encode(slice(start, start + step)) for start in range(0, max(1, rows), step)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def filled(specs: Mapping[str, ArraySpec], rows: int) -> Encoded:
    """Return arrays of ``rows`` rows of fill values."""
    return {
        name: np.full((rows, *spec.shape), spec.fill, dtype=spec.dtype)
        for name, spec in specs.items()
    }
