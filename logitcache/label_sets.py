"""Labels of images that may have any number of classes: a set of classes for each image.

Shapes: N images, M labels of all images together, C classes, W ids of the longest set.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from numpy.typing import NDArray

__all__ = ["HasLabels", "LabelSets", "label_sets_of", "label_texts"]


class HasLabels(Protocol):
    """Anything with one class per image; it may have an attribute ``label_sets``, too."""

    @property
    def labels(self) -> NDArray[np.int32]:
        """Class of every image, (N,); -1 without one."""
        ...


@dataclass(frozen=True, eq=False)
class LabelSets:
    """Sets of classes, one per image, as offsets and ids; made by :meth:`of`.

    An image of no class (an empty set) is not an image without labels (unknown).

    Attributes:
        offsets: int64 (N + 1,): the classes of image i are ``ids[offsets[i] : offsets[i + 1]]``.
        ids: Numbers of the classes, int32 (M,); ascending and unique in every set.
        known: Which images have labels, bool (N,); sets of the others are empty.
    """

    offsets: NDArray[np.int64]
    ids: NDArray[np.int32]
    known: NDArray[np.bool_]

    @classmethod
    def of(cls, sets: Iterable[Collection[int] | None]) -> Self:
        """Return the sets of images that are given one by one; None for an unknown one."""
        found = [None if one is None else sorted({int(label) for label in one}) for one in sets]
        sizes = np.fromiter((len(one or ()) for one in found), np.int64, len(found))
        ids = np.fromiter((label for one in found for label in one or ()), np.int32, sizes.sum())
        known = np.fromiter((one is not None for one in found), np.bool_, len(found))
        return cls(_offsets(sizes), ids, known)

    @classmethod
    def of_rows(cls, count_N: NDArray[np.int32], ids_NW: NDArray[np.int32]) -> Self:
        """Return the sets of rows that are padded to one length, the inverse of :meth:`rows`.

        Args:
            count_N: Number of classes of each row; -1 where they are unknown.
            ids_NW: The classes, ascending; only the first ``count`` numbers of a row are read.
        """
        sizes = np.maximum(count_N, 0).astype(np.int64)
        used_NW = np.arange(ids_NW.shape[1]) < sizes[:, None]
        return cls(_offsets(sizes), ids_NW[used_NW].astype(np.int32), count_N >= 0)

    def __len__(self) -> int:
        return len(self.known)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LabelSets):
            return NotImplemented
        return all(
            np.array_equal(getattr(self, name), getattr(other, name))
            for name in ("offsets", "ids", "known")
        )

    __hash__ = None  # type: ignore[assignment]  # arrays can be changed

    def __getitem__(self, index: int) -> list[int] | None:
        """Return the classes of one image, ascending; None if they are unknown."""
        if not self.known[index]:
            return None
        start, stop = self.offsets[index], self.offsets[index + 1]
        found: list[int] = self.ids[start:stop].tolist()
        return found

    @property
    def counts(self) -> NDArray[np.int64]:
        """Number of classes of every image, int64 (N,); 0 where they are unknown."""
        counts: NDArray[np.int64] = np.diff(self.offsets)
        return counts

    def take(self, indices: NDArray[np.integer[Any]]) -> LabelSets:
        """Return the sets of some images; the set at -1 is unknown."""
        at = np.asarray(indices, dtype=np.int64)
        here = at >= 0
        sizes = np.where(here, self.counts[at], 0) if len(self) else np.zeros(len(at), np.int64)
        offsets = _offsets(sizes)
        # position of every label: that of the first one of its image, and how many follow it
        starts = np.repeat(self.offsets[at] - offsets[:-1], sizes)
        ids = self.ids[starts + np.arange(offsets[-1])]
        return LabelSets(offsets, ids, here & (self.known[at] if len(self) else False))

    def differ(self, other: LabelSets) -> NDArray[np.bool_]:
        """Return which images have other classes in other sets, bool (N,); unknown is no other."""
        both_N = self.known & other.known
        differing_N: NDArray[np.bool_] = both_N & (self.counts != other.counts)
        alike = np.flatnonzero(both_N & ~differing_N)
        ours, theirs = self.take(alike), other.take(alike)
        differing_N[np.repeat(alike, ours.counts)[ours.ids != theirs.ids]] = True
        return differing_N

    def mapped(self, table: NDArray[np.int32]) -> LabelSets:
        """Return the sets with other numbers of the same classes.

        Args:
            table: New number of each class, int32 (C + 1,), as
                :func:`~logitcache.data.classes.label_table` returns it.
        """
        ids, image = table[self.ids], np.repeat(np.arange(len(self)), self.counts)
        return LabelSets(self.offsets, ids[np.lexsort((ids, image))], self.known)

    def merged(self, table: NDArray[np.int32]) -> LabelSets:
        """Return the sets in other classes, of which one may stand for several.

        Args:
            table: New number of each class, -1 for classes that are left out.
        """
        numbers, image = table[self.ids], np.repeat(np.arange(len(self)), self.counts)
        kept = np.flatnonzero(numbers >= 0)
        pairs = np.unique(np.column_stack([image[kept], numbers[kept]]), axis=0).reshape(-1, 2)
        sizes = np.bincount(pairs[:, 0], minlength=len(self))
        return LabelSets(_offsets(sizes), pairs[:, 1].astype(np.int32), self.known)

    def rows(self, width: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Return the sets as rows of one length, as a cache stores them.

        Args:
            width: Length of the rows, W; at least that of the longest set.

        Returns:
            Number of classes, int32 (N,), -1 where they are unknown; and the classes, int32 (N, W),
            followed by zeros, which compress best.
        """
        counts_N = self.counts
        ids_NW = np.zeros((len(self), width), dtype=np.int32)
        ids_NW[np.arange(width) < counts_N[:, None]] = self.ids
        return np.where(self.known, counts_N, -1).astype(np.int32), ids_NW

    def indicators(self, num_classes: int) -> NDArray[np.float32]:
        """Return the sets as float32 (N, C): 1 for their classes, else 0; NaN where unknown."""
        found_NC = np.zeros((len(self), num_classes), dtype=np.float32)
        found_NC[np.repeat(np.arange(len(self)), self.counts), self.ids] = 1.0
        found_NC[~self.known] = np.nan
        return found_NC


def label_sets_of(source: object) -> LabelSets | None:
    """Return the label sets of images; None where an image has at most one class."""
    found: LabelSets | None = getattr(source, "label_sets", None)
    return found


def label_texts(source: HasLabels, indices: NDArray[np.integer[Any]]) -> Iterable[str]:
    """Yield the labels of some images as text: ``3``, ``0,3,7`` or nothing for sets, else ``-1``.

    Listings are digested and compared by these.
    """
    sets = label_sets_of(source)
    for index in indices:
        if sets is None:
            yield str(source.labels[index])
        else:
            labels = sets[int(index)]
            yield "-1" if labels is None else ",".join(map(str, labels))


def _offsets(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(sizes, dtype=np.int64)])
