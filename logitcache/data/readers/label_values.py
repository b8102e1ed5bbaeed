"""Labels as image sets have them: a value of one column, of several columns, or lists.

One class per image is read from one column. An image may have several classes where values are
lists, where names are separated by a character (``label_separator``), and where ``label_column`` is
a list of columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from logitcache.data.classes import label_table
from logitcache.data.readers.labels import number_labels, unlabeled_note
from logitcache.errors import DataError, first_of
from logitcache.label_sets import LabelSets

if TYPE_CHECKING:
    from collections.abc import Iterable

    from logitcache.data.readers.reader import ReaderConfig

__all__ = ["LabelValues", "NumberedLabels", "column_names"]

_TRUE = {"1", "1.0", "true"}
_FALSE = {"0", "0.0", "false"}
_HINT = "choose another column: --set data.path_column=NAME, or data.label_column=NAME"

Names = tuple[str, ...]
Place = Callable[[int], object]


def column_names(config: ReaderConfig) -> list[str | None]:
    """Return the configured names of the label columns; ``[None]`` where none is configured."""
    name = config.label_column
    return [*name] if isinstance(name, list) else [name]


@dataclass(frozen=True)
class NumberedLabels:
    """Labels as numbers of classes.

    Attributes:
        labels: Class of each image, -1 without one; all -1 where there are sets.
        class_names: Names of the classes.
        sets: Classes of each image; None where an image has at most one.
        notes: Notes for the user.
    """

    labels: list[int]
    class_names: list[str]
    sets: LabelSets | None = None
    notes: list[str] = field(default_factory=list)

    def ordered(self, class_names: list[str]) -> NumberedLabels:
        """Return the same labels as numbers of a longer list of classes, in its order."""
        table = label_table(self.class_names, class_names)
        labels = table[np.array(self.labels, dtype=np.int64)].tolist()
        sets = None if self.sets is None else self.sets.mapped(table)
        return replace(self, labels=labels, class_names=class_names, sets=sets)


class LabelValues:
    """Names of the classes of every image of a set.

    Args:
        values: For every image the value of each label column: a text, a number, a list, or None;
            no values where the set has no labels.
        columns: Names of the columns.
        config: Settings of the set.
        place: Returns the place of an image by its position, for messages.

    Attributes:
        names: Names of the classes of each image; None without labels.
        several: Whether an image may have several classes.
        notes: Notes for the user.

    Raises:
        DataError: A value is no class, or values are of several kinds.
    """

    def __init__(
        self,
        values: Sequence[Sequence[Any]],
        columns: Sequence[str],
        config: ReaderConfig,
        place: Place,
    ) -> None:
        self.notes: list[str] = []
        self.every: set[str] = set()
        self._place = place
        separator = config.label_separator
        lists = any(isinstance(value, list | tuple) for row in values for value in row)
        self.several = isinstance(config.label_column, list) or separator is not None or lists
        if len(columns) > 1:
            self.names = self._of_columns(values, columns)
        else:
            read = self._list if lists else self._single if separator is None else self._separated
            rows = enumerate(row[0] if row else None for row in values)
            column = columns[0] if columns else ""
            self.names = [read(value, column, at, separator) for at, value in rows]
        self.every |= {name for names in self.names for name in names or ()}

    def numbered(
        self,
        where: object,
        what: str,
        class_list: str | None = None,
        chosen: Iterable[int] | None = None,
    ) -> NumberedLabels:
        """Return the labels of some images as numbers; classes are those of all images.

        Args:
            where: The set, for messages.
            what: The set as a phrase, for the note on images without labels.
            class_list: As for :func:`.number_labels`.
            chosen: Positions of the images; all by default.

        Raises:
            DataError: A label is in no list of classes.
        """
        of = self.names if chosen is None else [self.names[at] for at in chosen]
        flat = [name for names in of for name in names or ()]
        numbers, class_names = number_labels(flat, self.every, class_list, where)
        ends = np.cumsum([len(names or ()) for names in of]).tolist()
        parts = [numbers[end - len(names or ()) : end] for names, end in zip(of, ends, strict=True)]
        single = [part[0] if part and not self.several else -1 for part in parts]
        known = [label for label, names in zip(parts, of, strict=True) if names is not None]
        unlabeled = unlabeled_note([0] * len(known) + [-1] * (len(of) - len(known)), what)
        sets = None
        if self.several:
            pairs = zip(parts, of, strict=True)
            sets = LabelSets.of(None if names is None else part for part, names in pairs)
        return NumberedLabels(single, class_names, sets, [*self.notes, *unlabeled])

    def _single(self, value: Any, column: str, at: int, separator: object) -> Names | None:
        text = self._text(value, column, at)
        return (text,) if text else None

    def _list(self, value: Any, column: str, at: int, separator: object) -> Names | None:
        if value is None:
            return None
        if not isinstance(value, list | tuple):
            raise DataError(
                f"{column!r} has lists and other values",
                where=self._place(at),
                expected="a list of classes, or null without labels",
                got=f"a value of type {type(value).__name__}",
                hint=_HINT,
            )
        return tuple(filter(None, (self._text(each, column, at) for each in value)))

    def _separated(self, value: Any, column: str, at: int, separator: object) -> Names | None:
        text = self._text(value, column, at)
        parts = [part.strip() for part in text.split(cast("str", separator))]
        return tuple(part for part in parts if part) if text else None

    def _text(self, value: Any, column: str, at: int) -> str:
        """Return a class as text; empty for no value."""
        if value is not None and (isinstance(value, bool) or not isinstance(value, str | int)):
            raise DataError(
                f"{column!r} is neither a text nor a whole number",
                where=self._place(at),
                expected="a class as text or whole number, or a list of them",
                got=f"a value of type {type(value).__name__}",
                hint=_HINT,
            )
        return "" if value is None else str(value).strip()

    def _of_columns(
        self, values: Sequence[Sequence[Any]], columns: Sequence[str]
    ) -> list[Names | None]:
        """Return the classes of several columns: one each of 0 and 1, or names in any of them."""
        texts = [["" if v is None else str(v).strip() for v in row] for row in values]
        found = {text.lower() for row in texts for text in row if text}
        if not found <= _TRUE | _FALSE:
            self._check_names(texts, columns)
            return [tuple(filter(None, row)) if any(row) else None for row in texts]
        self.every |= set(columns)
        self.notes.append(
            f"the {len(columns)} label columns have 0 and 1 alone, so each is a class: "
            f"{first_of(list(columns))}"
        )
        return [self._present(row, columns, at) for at, row in enumerate(texts)]

    def _present(self, row: Sequence[str], columns: Sequence[str], at: int) -> Names | None:
        if not any(row):
            return None
        if not all(row):
            empty = [name for name, text in zip(columns, row, strict=True) if not text]
            raise DataError(
                "a row has values for some of its classes only",
                where=self._place(at),
                expected="0 or 1 in every label column, or in none of them",
                got=f"nothing in {first_of(empty)}",
                hint="fill in 0 or 1, or empty all label columns of an image without labels",
            )
        return tuple(n for n, text in zip(columns, row, strict=True) if text.lower() in _TRUE)

    def _check_names(self, texts: Sequence[Sequence[str]], columns: Sequence[str]) -> None:
        """Refuse numbers in several columns: they may be scores, or codes of uncertain labels."""
        numbers = [
            (text.lower() in _TRUE | _FALSE, at, column, text)
            for at, row in enumerate(texts)
            for column, text in zip(columns, row, strict=True)
            if _is_number(text)
        ]
        if numbers:
            _, at, column, text = min(numbers)  # one that is neither 0 nor 1, if there is one
            raise DataError(
                "label columns have numbers that are not all 0 or 1",
                where=self._place(at),
                expected="0 or 1 in every label column, or names of classes",
                got=f"{text!r} in {column!r}",
                hint="write 0 or 1, or leave the column out of data.label_column",
            )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
