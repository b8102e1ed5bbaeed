"""Parquet tables of images, read by pyarrow; only the columns that are used are read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from logitcache.data.readers.table import Row, Table, find_columns, open_rows
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


def _read(path: Path, config: ReaderConfig) -> Table:
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
            columns = find_columns(schema.names, config, path)
            split = None if columns.split is None else schema.names[columns.split]
            texts = [name for name in (schema.names[columns.path], split) if name is not None]
            # before anything is read: a column of images may be large
            for name in texts:
                _check_type(name, schema.field(name).type, path)
            for name in columns.label_names:
                _check_label_type(name, schema.field(name).type, path, len(columns.labels) > 1)
            table = file.read(columns=[*texts, *columns.label_names])
        paths = _texts(table[texts[0]])
        splits = [None] * len(paths) if split is None else _texts(table[split])
        values = [table[name].to_pylist() for name in columns.label_names]
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(
            "the table of images cannot be read",
            where=path,
            expected="a parquet file",
            got=str(error).partition("\n")[0],
        ) from None
    labels = zip(*values, strict=True) if values else ((),) * len(paths)
    rows = zip(range(1, len(paths) + 1), paths, labels, splits, strict=True)
    return Table([Row(*row) for row in rows], columns.label_names, columns.unused)


_INSIDE = (
    "images inside of parquet files are read by Hugging Face datasets: "
    "datasets.load_dataset('parquet', data_files=…).save_to_disk(FOLDER), then give FOLDER"
)


def _check_label_type(name: str, kind: Any, path: Path, several: bool) -> None:
    """Refuse a column whose values are no classes; of several columns, flags are some, too."""
    from pyarrow import types

    inner = kind.value_type if types.is_list(kind) or types.is_large_list(kind) else kind
    if several and (types.is_boolean(kind) or types.is_floating(kind)):
        return
    _check_type(name, inner, path)


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
            hint=_INSIDE
            if types.is_struct(kind) or types.is_binary(kind) or types.is_large_binary(kind)
            else "choose another column: --set data.path_column=NAME, or data.label_column=NAME",
        )


def _texts(column: Any) -> list[Any]:
    """Return values as text; empty for null."""
    return ["" if value is None else str(value).strip() for value in column.to_pylist()]
