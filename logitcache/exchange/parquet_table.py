"""Outputs in a parquet table: a row for each image and view.

========================================== ====================================================
column                                     is
========================================== ====================================================
key                                        name of the image
view                                       name of the view; absent where there is one
logits, log_probs or probabilities         outputs, a list of the same length in every row
class_ids                                  indices of the classes that are stored, a list; absent
                                           where all are
========================================== ====================================================

Metadata ``class_names`` of the table are the names of the classes as a JSON list.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from logitcache.errors import DataError, UsageError, first_of
from logitcache.exchange.numpy_files import array_outputs
from logitcache.exchange.outputs import VALUES

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from logitcache.exchange.outputs import (
        ExportedOutputs,
        OutputFile,
        ReadSettings,
        WriteSettings,
    )

__all__ = ["open_parquet", "write_parquet"]

_CLASS_NAMES = b"class_names"


def open_parquet(path: Path, settings: ReadSettings) -> OutputFile:
    """Open a table of outputs; it is read into memory.

    Raises:
        UsageError: pyarrow is not installed.
        DataError: The table cannot be read, lacks a column, or lacks an image in some view.
    """
    pa, pq = _pyarrow()
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError("a table of outputs cannot be read", where=path, got=error) from None
    present = [name for name in VALUES if name in table.column_names]
    if len(present) != 1 or "key" not in table.column_names or not table.num_rows:
        raise DataError(
            "the table lacks columns of outputs",
            where=path,
            expected=f"rows with the columns key, one of {', '.join(VALUES)}, perhaps class_ids "
            "and view",
            got=f"{table.num_rows} rows with {', '.join(table.column_names)}",
        )
    texts = [str(key) for key in table["key"].to_pylist()]
    views = table["view"].to_pylist() if "view" in table.column_names else [""] * len(texts)
    order_VN, keys = _by_view(path, texts, [str(view) for view in views])
    values = _matrix(path, table, present[0])[order_VN]
    ids = _matrix(path, table, "class_ids")[order_VN] if "class_ids" in table.column_names else None
    names = (table.schema.metadata or {}).get(_CLASS_NAMES)
    return array_outputs(
        "parquet",
        path,
        values,
        ids,
        keys,
        present[0],
        None if names is None else _names(path, names),
    )


def _by_view(path: Path, keys: list[str], views: list[str]) -> tuple[NDArray[np.int64], list[str]]:
    """Return the row of each view and image, int64 (V, N), and the keys of the images.

    Raises:
        DataError: An image occurs twice in a view, or is missing in one.
    """
    rows: dict[str, dict[str, int]] = {}
    for row, (key, view) in enumerate(zip(keys, views, strict=True)):
        if rows.setdefault(view, {}).setdefault(key, row) != row:
            got = f"{key} twice in view {view!r}"
            raise DataError("an image occurs twice in a table of outputs", where=path, got=got)
    first = next(iter(rows.values()))
    for view, own in rows.items():
        if own.keys() != first.keys():
            raise DataError(
                "the views of a table of outputs have different images",
                where=path,
                expected=f"{len(first)} images in every view",
                got=f"{len(own)} in view {view!r}",
            )
    order = [[own[key] for key in first] for own in rows.values()]
    return np.array(order, dtype=np.int64), list(first)


def _matrix(path: Path, table: Any, name: str) -> NDArray[Any]:
    """Return a column of lists of the same length as a matrix.

    Raises:
        DataError: Lists have different lengths, or values that are no numbers.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    column = table[name].combine_chunks()
    got: object = column.type
    try:
        lengths = pc.unique(pc.list_value_length(column)).to_pylist()
        if len(lengths) == 1 and lengths[0]:
            flat = column.flatten().to_numpy(zero_copy_only=False)
            found: NDArray[Any] = flat.reshape(table.num_rows, lengths[0])
            return found
        got = f"lists of the lengths {first_of([str(length) for length in lengths])}"
    except (ValueError, TypeError, AttributeError, pa.ArrowException) as error:
        got = error
    raise DataError(
        f"the column {name} of a table of outputs cannot be used",
        where=path,
        expected="a list of numbers in each row, all of the same length",
        got=got,
    )


def _names(path: Path, content: bytes) -> tuple[str, ...]:
    try:
        names = json.loads(content)
    except ValueError as error:
        raise DataError(
            "the class names of a table cannot be read", where=path, got=error
        ) from None
    return tuple(map(str, names)) if isinstance(names, list) else ()


def write_parquet(outputs: ExportedOutputs, out: Path, settings: WriteSettings) -> None:
    """Write the columns ``view``, ``key``, ``class_ids`` and ``log_probs``.

    Raises:
        UsageError: pyarrow is not installed.
    """
    pa, pq = _pyarrow()
    width = outputs.top_k or outputs.num_classes
    fields = [("view", pa.string()), ("key", pa.string())]
    if outputs.top_k is not None:
        fields.append(("class_ids", pa.list_(pa.int32(), width)))
    metadata = {
        "teacher": outputs.teacher,
        "revision_sha256": outputs.revision,
        **({"class_names": json.dumps(outputs.class_names)} if outputs.class_names else {}),
    }
    schema = pa.schema([*fields, ("log_probs", pa.list_(pa.float32(), width))], metadata=metadata)
    with pq.ParquetWriter(out, schema) as writer:
        for rows in outputs.rows():
            columns: dict[str, Any] = {
                "view": [outputs.views[rows.view]] * len(rows.keys),
                "key": settings.named(rows.keys),
                "log_probs": _lists(pa, rows.log_probs.astype(np.float32), width),
            }
            if rows.class_ids is not None:
                columns["class_ids"] = _lists(pa, rows.class_ids.astype(np.int32), width)
            writer.write_table(pa.table(columns, schema=schema))


def _lists(pa: Any, values: NDArray[Any], width: int) -> Any:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), width)


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise UsageError(
            "parquet tables need the package pyarrow, which is not installed",
            hint="pip install 'logitcache[parquet]'",
        ) from None
    return pa, pq
