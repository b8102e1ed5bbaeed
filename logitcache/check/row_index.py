"""Comparison of the index of rows, row by row, with the samples of a cache."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from logitcache.cache.format.names import INDEX
from logitcache.cache.verify.row_index import sealed_index_digest

if TYPE_CHECKING:
    from logitcache.cache.format.samples import Samples
    from logitcache.cache.read.reader import Cache
    from logitcache.cache.store.base import Location

__all__ = ["index_difference"]

_MOST_INDEX_BYTES = 2**40


def index_difference(location: Location, cache: Cache) -> str | None:
    """Return how the first row of the index that is wrong differs from the samples.

    None where every row of it is right, where the cache has no sealed index, or where pyarrow is
    not installed. An index may have fewer rows: it describes the state in which it was written.

    Args:
        location: The cache.
        cache: Its reader; bytes are compared before.
    """
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        return None
    if sealed_index_digest(location, cache.manifest) is None:
        return None
    content = location.read(INDEX, most=_MOST_INDEX_BYTES)
    try:
        with parquet.ParquetFile(io.BytesIO(content or b"")) as file:
            if file.metadata.num_rows > cache.rows_end:
                return f"{file.metadata.num_rows} rows for {cache.rows_end} images"
            for group in range(file.num_row_groups):
                found = _difference(file.read_row_group(group).to_pydict(), cache)
                if found is not None:
                    return found
    except (ArrowException, OSError, ValueError) as error:
        return f"not a parquet file: {str(error).partition(chr(10))[0][:200]}"
    return None


def _difference(columns: dict[str, list[Any]], cache: Cache) -> str | None:
    name = "label" if cache.manifest.data.label_width is None else "labels"
    if list(columns) != ["key", "row", name, "digest"]:
        return f"columns {', '.join(columns)[:200]} instead of key, row, {name}, digest"
    units: dict[int, Samples] = {}
    for key, row, label, digest in zip(*columns.values(), strict=True):
        if not isinstance(row, int) or not 0 <= row < cache.rows_end:
            return f"row {row} of {cache.rows_end}"
        unit = row // cache.unit_rows
        if unit not in units:
            units = {unit: cache.samples_of(unit)}  # one at a time: rows are ascending
        samples, offset = units[unit], row - units[unit].start
        sets = samples.label_sets
        known = (
            str(samples.keys[offset]),
            int(samples.labels[offset]) if sets is None else sets[offset],
            samples.digests[offset].tobytes().hex(),
        )
        if (key, label, digest) != known:
            return f"row {row}: {(key, label, digest)!r:.200} instead of {known!r:.200}"
    return None
