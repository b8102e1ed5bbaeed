"""Values of the pixels in rendered batches: levels in bytes, or normalized floats.

Shapes: B images, S side of a square.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Levels", "Normalized", "PixelValues"]


class PixelValues(Protocol):
    """How squares are written to the memory of a batch; thread-safe."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the batch."""
        ...

    def write(self, square_3SS: NDArray[np.uint8], out_3SS: NDArray[Any]) -> None:
        """Write a square into a batch."""
        ...


class Levels:
    """Levels from 0 to 255, as they are."""

    dtype: np.dtype[Any] = np.dtype(np.uint8)

    def write(self, square_3SS: NDArray[np.uint8], out_3SS: NDArray[Any]) -> None:
        """Copy a square into a batch."""
        np.copyto(out_3SS, square_3SS)


class Normalized:
    """Normalized float32 values: (level - 255 mean) / (255 std), each operation rounded.

    Args:
        mean: Mean per channel, for pixel values in [0, 1].
        std: Standard deviation per channel, for pixel values in [0, 1].
    """

    dtype: np.dtype[Any] = np.dtype(np.float32)

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self._mean_311, self._std_311 = (
            (np.float32(255) * np.array(values, np.float32)).reshape(-1, 1, 1)
            for values in (mean, std)
        )

    def write(self, square_3SS: NDArray[np.uint8], out_3SS: NDArray[Any]) -> None:
        """Normalize a square, or squares (B, 3, S, S), into a batch.

        By numpy, not by torch: threads of a renderer call it, and each would start the threads of
        torch.
        """
        np.copyto(out_3SS, square_3SS)
        np.subtract(out_3SS, self._mean_311, out=out_3SS)
        np.divide(out_3SS, self._std_311, out=out_3SS)
