"""What every format is given to keep, and what it has to give back."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from logitcache.encoding.arrays import Encoded
    from logitcache.encoding.decoded import DecodedSparse

__all__ = ["BATCH", "Feed", "Peer", "Stored", "log_of"]

BATCH = 128

Feed = Iterable[tuple[Tensor, Tensor, Tensor]]
"""One epoch each time it is walked: images, class ids (B, K) and their log-probabilities (B, K).

Formats that keep every class give ids of width 0 and log-probabilities (B, C).
"""


@dataclass(frozen=True)
class Stored:
    """Outputs of a teacher for one view.

    Attributes:
        samples: Names of the images, and what else a cache keeps of them.
        encoded: As our cache keeps it.
        decoded: The same, read back: what the sparse formats keep.
        log_probs: Of all classes, float16 (N, C): what the dense ones keep.
    """

    samples: Encoded
    encoded: Encoded
    decoded: DecodedSparse
    log_probs: NDArray[np.float16]

    @property
    def keys(self) -> list[str]:
        """Names of the images."""
        return list(self.samples["key"])


class Peer(Protocol):
    """A format.

    Attributes:
        name: What it is, and how it is read.
        lacks: What it cannot do, as its sources or the format itself show.
    """

    name: str
    lacks: str

    def write(self, folder: Path, stored: Stored) -> int:
        """Write everything; return how many rows of one view the folder holds."""
        ...

    def feed(self, folder: Path, images: Tensor, stored: Stored, workers: int) -> Feed:
        """Return what a training loop iterates over."""
        ...


def log_of(probs: NDArray[np.float16]) -> Tensor:
    """Return float32 log-probabilities; half precision has zeros where probabilities are small."""
    with np.errstate(divide="ignore"):
        return torch.from_numpy(np.log(probs.astype(np.float32))).clamp_(min=-100.0)
