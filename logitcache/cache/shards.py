"""Decoding whole shards without zarr: the index, the checksums and blosc, nothing else.

A reader has the bytes of a shard in memory anyway, because it compares their sha256 with the
commit. This decodes those bytes straight into the rows of a larger array, which zarr cannot: it
reads each object again and copies each inner chunk. Only shards as our writer makes them are
decoded here; for all others :func:`shard_layout` returns None, and zarr reads them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np
from numcodecs import blosc

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from logitcache.encoding.arrays import ArraySpec

__all__ = [
    "BadShardError",
    "ShardLayout",
    "decode_shard",
    "index_bytes",
    "shard_index",
    "shard_layout",
]

_ENTRY_BYTES, _CRC_BYTES = 16, 4
_BLOSC_HEADER_BYTES = 16
_LITTLE = ({"name": "bytes"}, {"name": "bytes", "configuration": {"endian": "little"}})
_INDEX_CODECS = [_LITTLE[1], {"name": "crc32c"}]


class BadShardError(Exception):
    """A shard that cannot be decoded; the message says what is wrong with it."""


@dataclass(frozen=True)
class ShardLayout:
    """How the rows of a unit lie in its shard.

    Attributes:
        rows: Rows of a shard.
        inner_rows: Rows of an inner chunk; divides ``rows``.
        compressed: Whether inner chunks are blosc frames, or plain little-endian bytes.
    """

    rows: int
    inner_rows: int
    compressed: bool

    @property
    def chunks(self) -> int:
        """How many inner chunks a shard has."""
        return self.rows // self.inner_rows


def shard_layout(document: bytes, spec: ArraySpec, leading: int) -> ShardLayout | None:
    """Return the layout of an array's shards, None if only zarr can read them.

    Args:
        document: The array's ``zarr.json``.
        spec: What a row must look like.
        leading: Axes before those of a row: 1 for (rows,), 2 for (views, rows).
    """
    try:
        values = json.loads(document)
        (sharding,) = values["codecs"]
        settings = sharding["configuration"]
        shard, inner = values["chunk_grid"]["configuration"]["chunk_shape"], settings["chunk_shape"]
        facts = (
            values["data_type"] == spec.dtype,
            values["chunk_grid"]["name"] == "regular",
            not values.get("storage_transformers"),
            sharding["name"] == "sharding_indexed",
            settings["index_codecs"] == _INDEX_CODECS,
            settings.get("index_location", "end") == "end",
            tuple(shard) == (1,) * (leading - 1) + (shard[leading - 1], *spec.shape),
            tuple(inner) == (1,) * (leading - 1) + (inner[leading - 1], *spec.shape),
            shard[leading - 1] % inner[leading - 1] == 0,
        )
        compressed = _is_compressed(settings["codecs"], np.dtype(spec.dtype).itemsize)
    except (ValueError, KeyError, TypeError, IndexError, ArithmeticError, RecursionError):
        return None
    if not all(facts) or compressed is None:
        return None
    return ShardLayout(shard[leading - 1], inner[leading - 1], compressed)


def _is_compressed(codecs: list[dict[str, Any]], item_bytes: int) -> bool | None:
    """Return whether a chain of codecs has blosc in it, None if it is not one of our writer's."""
    first, *between, last = codecs
    if first not in _LITTLE[item_bytes > 1 :] or last != {"name": "crc32c"} or len(between) > 1:
        return None
    return None if between and between[0]["name"] != "blosc" else bool(between)


def index_bytes(chunks: int) -> int:
    """Return the bytes of the index at the end of a shard, its checksum included."""
    return chunks * _ENTRY_BYTES + _CRC_BYTES


def shard_index(content: NDArray[np.uint8], chunks: int) -> NDArray[np.uint64]:
    """Return (offset, bytes) of every inner chunk of a shard: uint64 (chunks, 2).

    Absent ones have 2^64 - 1 in both places.

    Args:
        content: The shard, or the end of it.
        chunks: How many inner chunks it has.

    Raises:
        BadShardError: The shard is too short, or the index has changed.
    """
    length = index_bytes(chunks)
    if not chunks or len(content) < length:
        raise BadShardError("too short for its index")
    body, checksum = content[-length:-_CRC_BYTES], content[-_CRC_BYTES:]
    if google_crc32c.value(body) != int.from_bytes(checksum.tobytes(), "little"):
        raise BadShardError("the checksum of its index does not hold")
    return np.frombuffer(body, dtype="<u8").reshape(chunks, 2)


def decode_shard(content: bytes, layout: ShardLayout, out: NDArray[Any]) -> None:
    """Decode all rows of a shard.

    Args:
        content: The shard.
        layout: How its rows lie in it.
        out: Where they go: (rows, ...), C order, little-endian.

    Raises:
        BadShardError: The index or a checksum does not hold, or an inner chunk is missing or has
            another size than it should.
    """
    assert len(out) == layout.rows, f"{len(out)} rows for a shard of {layout.rows}"
    shard = np.frombuffer(content, np.uint8)  # what crc32c and blosc slice without a copy
    for chunk, (offset, length) in enumerate(shard_index(shard, layout.chunks).tolist()):
        rows = out[chunk * layout.inner_rows : (chunk + 1) * layout.inner_rows]
        try:
            _decode_chunk(shard[offset : offset + length], rows, compressed=layout.compressed)
        except BadShardError as error:
            raise BadShardError(f"inner chunk {chunk} of {layout.chunks}: {error}") from None


def _decode_chunk(chunk: NDArray[np.uint8], rows: NDArray[Any], *, compressed: bool) -> None:
    body, checksum = chunk[:-_CRC_BYTES], chunk[-_CRC_BYTES:]
    if len(body) <= _BLOSC_HEADER_BYTES * compressed:
        raise BadShardError("missing, or behind the end of the shard")
    if google_crc32c.value(body) != int.from_bytes(checksum.tobytes(), "little"):
        raise BadShardError("its checksum does not hold")
    size = int.from_bytes(body[4:8].tobytes(), "little") if compressed else len(body)
    if size != rows.nbytes:
        raise BadShardError(f"{size} bytes instead of {rows.nbytes}")
    if not compressed:
        rows[...] = body.view(rows.dtype).reshape(rows.shape)
        return
    try:
        blosc.decompress(body, rows)
    except (RuntimeError, ValueError) as error:
        raise BadShardError(f"not a blosc frame ({error})") from None
