"""Parquet tables of images, read by pyarrow; only the columns that are used are read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from logitcache.data.readers.table import Row, open_rows, positions_of
from logitcache.errors import DataError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from logitcache.data.readers.files import FileSource
    from logitcache.data.readers.reader import ReaderConfig

__all__ = ["open_parquet"]


def open_parquet(config: ReaderConfig, listing: int) -> FileSource:
    """List the images of a parquet table; see :func:`.open_rows`.

    Raises:
        UsageError: pyarrow is not installed.
    """
    del listing  # the rules are those of folders: what a table lists is never left out
    return open_rows(config, _read, "row")


def _read(path: Path, config: ReaderConfig) -> list[Row]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise UsageError(
            "parquet tables need the package pyarrow, which is not installed",
            where=path,
            hint='pip install "logitcache[parquet]"',
        ) from None
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            at = positions_of(schema.names, config, path)
            names = [schema.names[position] for position in at if position is not None]
            for name in names:  # before anything is read: a column of images may be large
                _check_type(name, schema.field(name).type, path)
            table = file.read(columns=names)
        paths, labels, splits = (
            [""] * len(table) if position is None else _texts(table[schema.names[position]])
            for position in at
        )
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(
            "the table of images cannot be read",
            where=path,
            expected="a parquet file",
            got=str(error).partition("\n")[0],
        ) from None
    return [
        Row(number, name, label, split if at[2] is not None else None)
        for number, (name, label, split) in enumerate(zip(paths, labels, splits, strict=True), 1)
    ]


def _check_type(name: str, kind: Any, path: Path) -> None:
    """Refuse a column whose values are neither text nor whole numbers."""
    from pyarrow import types

    inner = kind.value_type if types.is_dictionary(kind) else kind
    tests = (types.is_string, types.is_large_string, types.is_integer, types.is_null)
    if not any(test(inner) for test in tests):
        raise DataError(
            f"the column {name!r} of the table has neither texts nor whole numbers",
            where=path,
            expected="paths as text, and classes as text or whole numbers",
            got=f"values of type {kind}",
            hint="choose another column: --set data.path_column=NAME, or data.label_column=NAME",
        )


def _texts(column: Any) -> list[str]:
    """Return values as text; empty for null."""
    return ["" if value is None else str(value).strip() for value in column.to_pylist()]
