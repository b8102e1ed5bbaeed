"""Search for the batch size: the largest that fits, or the fastest.

It runs before anything is declared, because the result is recorded as the canonical batch of a
teacher: outputs are only equal bit for bit at the same batch size.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from logitcache.errors import NetworkError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from logitcache.teachers.ensemble import Ensemble

__all__ = ["choose_batch", "fastest_of_two", "memory_explained"]

_FIRST, _LARGEST = 16, 1024
_WORTH = 1.05  # minimum speed-up of a batch twice as large
_PATIENCE_SECONDS = 10.0  # for one forward pass


def choose_batch(
    ensemble: Ensemble, names: Collection[str], wanted: int | Literal["auto"]
) -> tuple[int, list[str]]:
    """Return the images per forward pass of new teachers, and notes on the choice.

    Args:
        ensemble: The teachers.
        names: Names of the teachers that are new to the cache.
        wanted: Number of images, halved until a batch fits into the memory of the device; or
            ``auto``, doubled as long as that is faster.

    Raises:
        NetworkError: Not even a batch of one image fits.
    """
    if not names:
        return (_FIRST if wanted == "auto" else wanted), []
    if wanted == "auto":
        found = _fastest(ensemble, names)
        return found, [f"batches of {found} images, the fastest of the sizes that were measured"]
    found = _fitting(ensemble, names, wanted)
    if found == wanted:
        return found, []
    return found, [f"batches of {found} images: not enough device memory for {wanted}"]


@contextlib.contextmanager
def memory_explained() -> Iterator[None]:
    """Raise a ``NetworkError`` with a hint instead of ``torch.OutOfMemoryError``."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise NetworkError(
            "out of device memory",
            got=str(error).partition("\n")[0],
            hint="free memory of the device and re-run the same command, committed data is intact; "
            "for new teachers or layers, reduce --batch-size",
        ) from None


def _fastest(ensemble: Ensemble, names: Collection[str]) -> int:
    """Return the largest batch up to which doubling is faster, fits, and does not take too long."""
    best = _fitting(ensemble, names, _FIRST)
    seconds = _seconds(ensemble, names, best)
    while best < _LARGEST and seconds * best < _PATIENCE_SECONDS:
        try:
            of_twice = _seconds(ensemble, names, 2 * best)
        except torch.OutOfMemoryError:
            _forget()
            break
        if seconds < _WORTH * of_twice:
            break
        best, seconds = 2 * best, of_twice
    return best


def _fitting(ensemble: Ensemble, names: Collection[str], batch: int) -> int:
    """Return a batch size, halved until a forward pass fits into the memory of the device."""
    while True:
        try:
            _forward(ensemble, names, batch)
        except torch.OutOfMemoryError as error:
            _forget()
            if batch == 1:
                raise NetworkError(
                    "not enough device memory for a batch of one image",
                    where=f"teachers {', '.join(names)}",
                    got=str(error).partition("\n")[0],
                    hint="free memory of the device, or choose another --device",
                ) from None
            batch //= 2
        else:
            return batch


def _seconds(ensemble: Ensemble, names: Collection[str], batch: int) -> float:
    """Return the seconds per image, the minimum of two forward passes."""
    return fastest_of_two(lambda: _forward(ensemble, names, batch)) / batch


def fastest_of_two(forward: Callable[[], object]) -> float:
    """Return the seconds of the faster one of two forward passes with the same shape."""
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        forward()
        seconds.append(time.perf_counter() - started)
    return min(seconds)  # the first pass may choose algorithms or compile


def _forward(ensemble: Ensemble, names: Collection[str], batch: int) -> None:
    sides = {ensemble.members[name].input.size for name in names}
    pixels = {side: np.zeros((batch, 3, side, side), dtype=np.uint8) for side in sides}
    ensemble.run(pixels, dict.fromkeys(names, batch), dict.fromkeys(names))


def _forget() -> None:
    """Free the memory that a failed forward pass has left in the allocator of torch."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
