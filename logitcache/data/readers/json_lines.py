"""Tables of images with one JSON object per line, such as ``metadata.jsonl``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from logitcache.data.readers.columns import parse_fields
from logitcache.data.readers.table import Columns, Row, Table, find_columns, open_rows
from logitcache.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    from logitcache.data.readers.files import FileSource
    from logitcache.data.readers.reader import ReaderConfig

__all__ = ["open_json_lines"]


def open_json_lines(config: ReaderConfig, listing: int) -> FileSource:
    """List the images of a file of JSON objects, one per line; see :func:`.open_rows`.

    The columns are the names in the first object.
    """
    del listing  # the rules are those of folders: what a table lists is never left out
    return open_rows(config, _read, "line")


def _read(path: Path, config: ReaderConfig) -> Table:
    rows: list[Row] = []
    columns: Columns | None = None
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                where = f"{path}, line {number}"
                try:
                    values = parse_fields(line)
                except ValueError as error:
                    raise _unreadable(where, error) from None
                if columns is None:
                    columns = find_columns(list(values), config, path)
                name = _text(values, columns.header[columns.path], where)
                labels = tuple(values.get(label) for label in columns.label_names)
                split = None
                if columns.split is not None:
                    split = _text(values, columns.header[columns.split], where)
                rows.append(Row(number, name, labels, split))
    except UnicodeDecodeError as error:
        raise _unreadable(path, error) from None
    if columns is None:
        return Table(rows, [], [])
    return Table(rows, columns.label_names, columns.unused)


def _text(values: dict[str, Any], column: str, where: str) -> str:
    """Return a text or a whole number as text; empty for null and for no such value."""
    value = values.get(column)
    if value is not None and (isinstance(value, bool) or not isinstance(value, str | int)):
        raise DataError(
            f"{column!r} is neither a text nor a whole number",
            where=where,
            expected="a path as text, and a class as text or whole number",
            got=f"a value of type {type(value).__name__}",
            hint="choose another column: --set data.path_column=NAME, or data.label_column=NAME",
        )
    return "" if value is None else str(value).strip()


def _unreadable(where: object, got: object) -> DataError:
    return DataError(
        "the table of images cannot be read",
        where=where,
        expected="one JSON object per line, in UTF-8",
        got=got,
    )
