"""Search for the batch size: the largest that fits, or the fastest.

Tried before anything is declared, because the batch of a teacher is recorded as its canonical one:
outputs are the same to the bit only at the same batch.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from logitcache.errors import NetworkError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from logitcache.teachers.ensemble import Ensemble

__all__ = ["choose_batch", "memory_explained"]

_FIRST, _LARGEST = 16, 1024
_WORTH = 1.05  # a batch twice as large has to be that much faster
_PATIENCE_SECONDS = 10.0  # of one forward


def choose_batch(
    ensemble: Ensemble, names: Collection[str], wanted: int | Literal["auto"]
) -> tuple[int, list[str]]:
    """Return the images of a forward for teachers that are new, and what to tell of the choice.

    Args:
        ensemble: The teachers.
        names: Which of them are new.
        wanted: So many, halved until they fit; or ``auto``, doubled while that is faster.

    Raises:
        NetworkError: Not even one image fits.
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
    """Turn a device that runs out of memory later into an error that names what is safe."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise NetworkError(
            "out of device memory",
            got=str(error).partition("\n")[0],
            hint="free memory of the device and re-run the same command, committed data is intact; "
            "new teachers or taps can have a smaller --batch-size",
        ) from None


def _fastest(ensemble: Ensemble, names: Collection[str]) -> int:
    """Return the batch from which doubling gains little, takes long or does not fit."""
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
    while True:
        try:
            _forward(ensemble, names, batch)
        except torch.OutOfMemoryError as error:
            _forget()
            if batch == 1:
                raise NetworkError(
                    "not enough device memory for a batch of one image",
                    where=", ".join(names),
                    got=str(error).partition("\n")[0],
                    hint="free memory of the device, or choose another --device",
                ) from None
            batch //= 2
        else:
            return batch


def _seconds(ensemble: Ensemble, names: Collection[str], batch: int) -> float:
    """Return the seconds of an image, the shorter of two tries."""
    tries = []
    for _ in range(2):
        started = time.perf_counter()
        _forward(ensemble, names, batch)
        tries.append(time.perf_counter() - started)
    return min(tries) / batch


def _forward(ensemble: Ensemble, names: Collection[str], batch: int) -> None:
    sides = {ensemble.members[name].input.size for name in names}
    pixels = {side: np.zeros((batch, 3, side, side), dtype=np.uint8) for side in sides}
    ensemble.answer(pixels, dict.fromkeys(names, batch), dict.fromkeys(names))


def _forget() -> None:
    """Give back what a forward that failed has left."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
