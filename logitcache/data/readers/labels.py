"""Classes of images whose labels are given as text: in a column, or next to the image."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from logitcache.data.classes import class_name, sorted_classes
from logitcache.data.readers.paths import user_path
from logitcache.errors import DataError, first_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

__all__ = ["number_labels", "unlabeled_note"]


def number_labels(
    labels: Sequence[str], every: Iterable[str], class_list: str | None, where: object
) -> tuple[list[int], list[str]]:
    """Return the class number of each label, and the names of the classes.

    Without a list of classes, the classes are the labels themselves in natural order. With one,
    labels are names of the list, or all of them are positions in it, from 0.

    Args:
        labels: Label of each image; empty without one.
        every: All labels of the set, also those of other splits.
        class_list: Text file with the name of one class per line, in the order of their numbers.
        where: The set, for messages.

    Returns:
        Numbers, -1 without a label, and names.

    Raises:
        DataError: The list cannot be used, or a label is not in it.
    """
    known = {label for label in every if label}
    if class_list is None:
        names = sorted_classes({class_name(label) for label in known})
        number = {name: index for index, name in enumerate(names)}
        return [number.get(class_name(label), -1) for label in labels], names
    names = _read_list(user_path(class_list))
    number = {name: index for index, name in enumerate(names)}
    if known and not known & number.keys():
        number = {str(index): index for index in range(len(names))}
    unknown = sorted_classes(label for label in known if class_name(label) not in number)
    if unknown:
        raise DataError(
            f"{len(unknown)} labels are not in the list of classes",
            where=where,
            expected=f"names of {class_list}, or numbers from 0 to {len(names) - 1}: "
            f"{first_of(names)}",
            got=first_of(unknown),
            hint="add them to the list of classes, or correct the labels",
        )
    return [number.get(class_name(label), -1) for label in labels], names


def _read_list(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            "the list of classes cannot be read",
            where=path,
            expected="a text file in UTF-8 with the name of one class per line",
            got=error.strerror if isinstance(error, OSError) else error,
        ) from None
    names = [class_name(line.strip()) for line in lines if line.strip()]
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice or not names:
        raise DataError(
            "the list of classes has names twice" if names else "the list of classes is empty",
            where=path,
            expected="the name of one class per line",
            got=first_of(twice) or None,
        )
    return names


def unlabeled_note(labels: Sequence[int], what: str) -> list[str]:
    """Return a note on the images without a label, if some of the images have one."""
    unlabeled = sum(label < 0 for label in labels)
    if not 0 < unlabeled < len(labels):
        return []
    return [f"{unlabeled} images of {what} have no label"]
