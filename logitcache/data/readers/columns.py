"""Columns of tables and data sets: which one has the paths, the classes and the splits.

The fields of a JSON object are the columns of a row.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from logitcache.errors import UsageError, first_of, nearest

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "IMAGES",
    "LABELS",
    "PATHS",
    "SPLIT",
    "Column",
    "find_column",
    "parse_fields",
    "without_label_notes",
]


class Column(NamedTuple):
    """A column that a reader looks for.

    Attributes:
        kind: What it contains, as in the setting ``<kind>_column``.
        usual: Names without case that are recognized, if no other column has one of them.
        required: Whether a table without such a column is an error.
    """

    kind: str
    usual: tuple[str, ...]
    required: bool = False


PATHS = Column(
    "path",
    ("path", "file", "filename", "file_name", "filepath", "image", "image_path", "img_path"),
    required=True,
)
IMAGES = Column("image", ("image", "img", "jpg", "jpeg", "png", "webp"), required=True)
LABELS = Column("label", ("label", "class", "class_name", "category", "target"))
SPLIT = Column("split", ("split",))


def find_column(
    header: Sequence[str], column: Column, name: str | None, where: object
) -> int | None:
    """Return the position of a column in a header; None if an optional column is not there.

    Args:
        header: Names of all columns.
        column: The column.
        name: Its name, if the user chose one.
        where: The table, for messages.

    Raises:
        UsageError: There is no such column, or several may be meant.
    """
    if name is not None:
        if header.count(name) != 1:
            raise UsageError(
                f"there is no column {name!r}"
                if name not in header
                else f"there are several columns {name!r}",
                where=where,
                expected=f"one of {', '.join(header)}",
                hint=nearest(name, header),
            )
        return header.index(name)
    found = [position for position, own in enumerate(header) if own.lower() in column.usual]
    if len(found) > 1 or (column.required and not found):
        raise UsageError(
            f"the column of the {column.kind}s of the images is not clear",
            where=where,
            expected=f"one column with a name such as {', '.join(column.usual[:4])}",
            got=f"columns {', '.join(header)}",
            hint=f"name it: --set data.{column.kind}_column=NAME",
        )
    return found[0] if found else None


def parse_fields(text: str | bytes) -> dict[str, Any]:
    """Parse a JSON object as the fields of one row.

    Raises:
        ValueError: It is not valid JSON, no object, nested too deeply, or has a field twice, of
            which Python's parser would keep the last without a message.
    """
    try:
        found = json.loads(text, object_pairs_hook=_unique)
    except RecursionError as error:
        raise ValueError(str(error)) from None
    match found:
        case dict():
            return found
        case _:
            raise ValueError(f"JSON of type {type(found).__name__}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        (name, count), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the field {name!r} is given {count} times")
    return found


def without_label_notes(unused: Sequence[str], what: str) -> list[str]:
    """Return a note if columns that are not used may have the classes that no column was found for.

    Args:
        unused: Names of the columns that are not used.
        what: The table or data set.
    """
    if not unused:
        return []
    return [
        f"{what} has no column {' or '.join(LABELS.usual)}, so its images have no labels; to read "
        f"them from {first_of(unused)}: --set data.label_column=NAME"
    ]
