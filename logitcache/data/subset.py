"""Some of the images of a source."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from logitcache.data.classes import RelabeledSource, class_positions
from logitcache.data.source import left_out_of, notes_of
from logitcache.errors import UsageError, nearest
from logitcache.label_sets import label_sets_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from logitcache.data.source import Source

__all__ = ["SubsetSource", "of_classes"]


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


def of_classes(source: Source, names: Sequence[str]) -> Source:
    """Return the images of some classes, with these classes alone, in their order.

    Args:
        source: The images; those without a label and of other classes are left out.
        names: Names of the classes.

    Raises:
        UsageError: There is no such class, or an image may have several.
    """
    if label_sets_of(source) is not None:
        raise UsageError(
            "images are chosen by their one class, but these may have several",
            where="data.classes",
            got=source.description,
            hint="remove classes; class_map at training time chooses classes of teachers",
        )
    positions = class_positions(names, source.class_names)
    for name, position in zip(names, positions, strict=True):
        if position is None:
            raise UsageError(
                f"the images have no class {name!r}",
                where="data.classes",
                hint=nearest(name, source.class_names),
            )
    wanted = np.isin(source.labels, np.array(positions, dtype=np.int64))
    chosen = SubsetSource(source, np.flatnonzero(wanted).tolist())
    return RelabeledSource(chosen, names, "data.classes")
