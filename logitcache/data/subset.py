"""Some of the images of a source."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from logitcache.data.source import left_out_of, notes_of
from logitcache.label_sets import label_sets_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from logitcache.data.source import Source

__all__ = ["SubsetSource"]


class SubsetSource:
    """Some of the images of a source, with all of its classes.

    Args:
        source: The images.
        indices: Positions of the images to keep.
    """

    def __init__(self, source: Source, indices: Sequence[int]) -> None:
        self.description = f"{len(indices)} of {len(source.keys)} images of {source.description}"
        self.class_names = source.class_names
        self.keys = [source.keys[index] for index in indices]
        self.sizes = source.sizes[list(indices)]
        self.labels = source.labels[list(indices)]
        sets = label_sets_of(source)
        self.label_sets = None if sets is None else sets.take(np.asarray(indices, dtype=np.int64))
        self.left_out = left_out_of(source)
        self.notes = notes_of(source)
        self._source = source
        self._indices = list(indices)

    def read(self, index: int) -> bytes | NDArray[np.uint8]:
        """Return one image as the source stores it."""
        return self._source.read(self._indices[index])
