"""Transfer of batches to the device that a student is trained on.

Shapes: B batch, S side of the images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from logitcache.views.pixel_values import Levels, Normalized

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from logitcache.batch import TargetBatch
    from logitcache.views.pixel_values import PixelValues

__all__ = ["Transfer"]

_CACHED_BYTES = 2**20  # of normalized images: what the caches of a core have
_Moved = TypeVar("_Moved", Tensor, "TargetBatch")


class Transfer:
    """Copies batches to a device and normalizes the images there.

    Pixels travel as bytes, a quarter of their size as floats; for the processor they are normalized
    where they are rendered. To a CUDA device they are copied from pinned memory on a stream of
    their own: the process does not wait for the copy, and the copy does not wait for the training
    step that is running.

    Args:
        device: Device of the batches.
        mean: Mean to subtract, per channel, for pixel values in [0, 1].
        std: Standard deviation to divide by, per channel, for pixel values in [0, 1].
    """

    def __init__(
        self, device: torch.device, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> None:
        self._device = device
        self._mean_C11, self._std_C11 = (
            (255.0 * torch.tensor(values)).view(-1, 1, 1).to(device) for values in (mean, std)
        )
        self._normalized = Normalized(mean, std)
        self._stream = _stream_of(device)
        self._is_processor = self._stream is None and device.type == "cpu"

    @property
    def values(self) -> PixelValues:
        """The values that are rendered: floats for the processor, bytes for other devices."""
        return self._normalized if self._is_processor else Levels()

    def images(self, pixels_B3SS: NDArray[Any]) -> Tensor:
        """Return normalized images, float32 (B, 3, S, S), on the device.

        Args:
            pixels_B3SS: The images, as :attr:`values`, or uint8, whose memory may be overwritten
                afterwards.
        """
        if pixels_B3SS.dtype == self._normalized.dtype:
            return torch.from_numpy(pixels_B3SS)
        if self._is_processor:
            return self._on_processor(pixels_B3SS)

        def normalized(pixels: Tensor) -> Tensor:
            # in place: the memory of a large batch takes longer to get than to fill
            return pixels.float().sub_(self._mean_C11).div_(self._std_C11)

        return self._moved(torch.from_numpy(pixels_B3SS), normalized)

    def _on_processor(self, pixels_B3SS: NDArray[np.uint8]) -> Tensor:
        """Return normalized images, a few at a time, while they are in the processor's caches."""
        # numpy asks the system for huge pages, PyTorch does not: getting 40 MB in pages of 4 KiB
        # takes three times as long as filling them
        images_B3SS = np.empty(pixels_B3SS.shape, np.float32)
        step = max(1, _CACHED_BYTES // max(1, images_B3SS[:1].nbytes))
        for start in range(0, len(pixels_B3SS), step):
            some = slice(start, start + step)
            self._normalized.write(pixels_B3SS[some], images_B3SS[some])
        return torch.from_numpy(images_B3SS)

    def targets(self, targets: TargetBatch) -> TargetBatch:
        """Return targets on the device."""
        return self._moved(targets, lambda moved: moved)

    def _moved(self, value: _Moved, then: Callable[[_Moved], _Moved]) -> _Moved:
        """Copy a value to the device, and compute a function of it there."""
        if self._stream is None:
            return then(value.to(self._device))
        # pinned memory is reused by PyTorch only after the copy that reads it has ended
        pinned = value.pin_memory()
        with torch.cuda.stream(self._stream):
            result = then(pinned.to(self._device, non_blocking=True))
        user = torch.cuda.current_stream(self._device)
        user.wait_stream(self._stream)
        # otherwise the memory could be overwritten by a later copy while the user still reads it
        result.record_stream(user)
        return result


def _stream_of(device: torch.device) -> torch.cuda.Stream | None:
    """Return a new stream of a CUDA device; None for other devices."""
    if device.type != "cuda":
        return None
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # PyTorch has no types for it
