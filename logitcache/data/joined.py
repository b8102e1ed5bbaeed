"""Several image sets as one: its parts, by name; and images without their labels."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from logitcache.data.classes import map_labels, sorted_classes
from logitcache.data.source import left_out_of, notes_of
from logitcache.errors import DataError
from logitcache.label_sets import label_sets_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from logitcache.data.source import Source

__all__ = ["JoinedSource", "UnlabeledSource"]


class JoinedSource:
    """Several image sets as one; the key of an image begins with the name of its part.

    Classes are joined by name, in natural order.

    Args:
        parts: The sets by name.

    Raises:
        DataError: Images have several classes.
    """

    def __init__(self, parts: Mapping[str, Source]) -> None:
        for name, part in parts.items():
            if label_sets_of(part) is not None:
                raise DataError(
                    "sets whose images have several classes cannot be joined with others",
                    where=f"part {name}: {part.description}",
                    expected="at most one class per image",
                )
        named = "; ".join(f"{name}: {part.description}" for name, part in parts.items())
        self.description = f"joined ({named})"
        self.keys = [f"{name}/{key}" for name, part in parts.items() for key in part.keys]
        self.class_names = sorted_classes({c for part in parts.values() for c in part.class_names})
        self.labels: NDArray[np.int32] = np.concatenate(
            [map_labels(part, self.class_names, "the joined set") for part in parts.values()]
        )
        self.sizes: NDArray[np.int64] = np.concatenate([part.sizes for part in parts.values()])
        self.left_out: dict[str, int] = {}
        for part in parts.values():
            for reason, count in left_out_of(part).items():
                self.left_out[reason] = self.left_out.get(reason, 0) + count
        self.notes = [note for part in parts.values() for note in notes_of(part)]
        self._parts = list(parts.values())
        self._ends = list(accumulate(len(part.keys) for part in self._parts))

    def read(self, index: int) -> bytes | NDArray[np.uint8]:
        """Return one image as its part stores it."""
        part = bisect_right(self._ends, index)
        return self._parts[part].read(index - (self._ends[part - 1] if part else 0))


class UnlabeledSource:
    """The images of a source without their labels and classes.

    Args:
        source: The images.
    """

    def __init__(self, source: Source) -> None:
        self.description = f"{source.description}, without labels"
        self.keys = source.keys
        self.sizes = source.sizes
        self.labels: NDArray[np.int32] = np.full(len(source.keys), -1, dtype=np.int32)
        self.class_names: list[str] = []
        self.left_out = left_out_of(source)
        self._source = source

    def read(self, index: int) -> bytes | NDArray[np.uint8]:
        """Return one image as the source stores it."""
        return self._source.read(index)
