"""Classes by name: one order of classes, and labels mapped from one list of classes to another.

The number of a class has no meaning outside of its own list. Wherever two lists meet (data and
cache, training and validation set, teacher and data, export and evaluation) numbers are mapped by
the names of the classes.
"""

from __future__ import annotations

import re
import unicodedata
from copy import copy
from typing import TYPE_CHECKING

import numpy as np

from logitcache.data.source import left_out_of, notes_of
from logitcache.errors import DataMismatch, first_of
from logitcache.label_sets import label_sets_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from logitcache.data.source import Source
    from logitcache.label_sets import LabelSets

__all__ = [
    "UNKNOWN_CLASS",
    "RelabeledSource",
    "class_name",
    "class_positions",
    "label_table",
    "map_label_sets",
    "map_labels",
    "sorted_classes",
]

_DIGITS = re.compile(r"([0-9]+)")
_LOWER = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz")
UNKNOWN_CLASS = -2
"""Stands for a class that another list does not have."""


def class_name(folder: str) -> str:
    """Return the name of a class: Unicode NFC, as file systems differ in how they write accents."""
    return unicodedata.normalize("NFC", folder)


def sorted_classes(names: Iterable[str]) -> list[str]:
    """Return class names in natural order.

    Numbers inside of names count as numbers and case counts last, as in timm. This concerns ASCII
    digits and letters only: the rest would depend on the version of Python. Names that are equal
    otherwise are ordered by code points.
    """
    return sorted(names, key=lambda name: (_natural(name), name))


def _natural(name: str) -> list[tuple[int, str]]:
    # odd parts are digits: pairs, so that numbers and texts are never compared
    parts = _DIGITS.split(name.translate(_LOWER))
    return [(int(part), "") if odd % 2 else (0, part) for odd, part in enumerate(parts)]


def class_positions(names: Sequence[str], among: Sequence[str]) -> list[int | None]:
    """Return the position of each class in another list of classes; None where it has none.

    Args:
        names: The classes.
        among: The other list.
    """
    positions = {class_name(name): position for position, name in enumerate(among)}
    return [positions.get(class_name(name)) for name in names]


def label_table(names: Sequence[str], among: Sequence[str]) -> NDArray[np.int32]:
    """Return the table that maps labels of one list of classes to another: ``table[labels]``.

    Args:
        names: The list that labels refer to.
        among: The list that the mapped labels refer to.

    Returns:
        int32 (len(names) + 1,): the position of each class in the other list, or
        :data:`UNKNOWN_CLASS`; the last entry, which a label of -1 takes, is -1.
    """
    positions = class_positions(names, among)
    return np.array([UNKNOWN_CLASS if p is None else p for p in positions] + [-1], dtype=np.int32)


def map_labels(source: Source, class_names: Sequence[str], whose: str) -> NDArray[np.int32]:
    """Return the labels of a source as numbers in another list of classes, mapped by name.

    Args:
        source: The images; they may have fewer classes.
        class_names: The list that the returned numbers refer to.
        whose: Owner of the list, for messages: ``the training set``.

    Returns:
        int32 (N,), -1 without a label.

    Raises:
        DataMismatch: The source has images of classes that are not in the list.
    """
    return _mapped(np.asarray(source.labels), source, class_names, whose)


def map_label_sets(source: Source, class_names: Sequence[str], whose: str) -> LabelSets | None:
    """Return the label sets of a source with the numbers of another list of classes.

    Args:
        source: As for :func:`map_labels`.
        class_names: The list that the returned numbers refer to.
        whose: Owner of the list, for messages.

    Returns:
        None if an image has at most one class.

    Raises:
        DataMismatch: The source has images of classes that are not in the list.
    """
    sets = label_sets_of(source)
    if sets is None:
        return None
    _mapped(sets.ids, source, class_names, whose)
    return sets.mapped(label_table(source.class_names, class_names))


def _mapped(
    labels: NDArray[np.int32], source: Source, class_names: Sequence[str], whose: str
) -> NDArray[np.int32]:
    mapped: NDArray[np.int32] = label_table(source.class_names, class_names)[labels]
    unknown = np.unique(labels[mapped == UNKNOWN_CLASS]).tolist()
    if unknown:
        raise _unknown_classes(source, [source.class_names[c] for c in unknown], class_names, whose)
    return mapped


def _unknown_classes(
    source: Source, unknown: Sequence[str], class_names: Sequence[str], whose: str
) -> DataMismatch:
    found = class_positions(class_names, source.class_names)
    missing = [name for name, position in zip(class_names, found, strict=True) if position is None]
    hint = "rename the folders, or remove them from the images"
    if missing:
        hint += f"; the images lack classes of {whose}: {first_of(missing)}"
    return DataMismatch(
        f"{len(unknown)} classes of these images are not classes of {whose}",
        where=source.description,
        expected=f"classes among {first_of(class_names)}",
        got=first_of(unknown),
        hint=hint,
    )


class RelabeledSource:
    """A source whose labels are numbers in another list of classes.

    Args:
        source: The images.
        class_names: The list.
        whose: Owner of the list, for messages.

    Raises:
        DataMismatch: The source has images of classes that are not in the list.
    """

    def __init__(self, source: Source, class_names: Sequence[str], whose: str) -> None:
        self.description = source.description
        self.keys = source.keys
        self.sizes = source.sizes
        self.labels = map_labels(source, class_names, whose)
        self.label_sets = map_label_sets(source, class_names, whose)
        self.class_names = list(class_names)
        self.left_out = left_out_of(source)
        self.notes = notes_of(source)
        self._source = source

    def mapped(self, table: NDArray[np.int32], class_names: Sequence[str]) -> RelabeledSource:
        """Return the images with labels in further classes.

        Args:
            table: Class for each label, -1 for none; the last entry is that of images without one.
            class_names: Names of these classes.
        """
        changed = copy(self)
        changed.labels, changed.class_names = table[self.labels], list(class_names)
        changed.label_sets = None if self.label_sets is None else self.label_sets.merged(table)
        return changed

    def read(self, index: int) -> bytes | NDArray[np.uint8]:
        """Return one image as the source stores it."""
        return self._source.read(index)
