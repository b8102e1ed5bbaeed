"""Decoding of whole shards: the index, the checksums and blosc, without zarr.

A reader has the bytes of a shard in memory anyway, because it compares their sha256 with the
commit. They are decoded directly into the rows of a larger array, which zarr cannot do: it reads
each object again and copies each inner chunk. This is also where an untrusted cache is checked:
only chains of codecs that a logitcache has written are decoded, and the size of the result is known
before it is decoded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import google_crc32c
import numpy as np
from numcodecs import VLenUTF8, blosc
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from logitcache.cache.format.documents import parse_json, validated
from logitcache.cache.format.names import MAX_CONTENT_BYTES, max_key_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from logitcache.encoding.arrays import ArraySpec

__all__ = [
    "CHAINS",
    "ArrayDocument",
    "BadShardError",
    "ShardLayout",
    "check_index",
    "decode_chunk",
    "decode_pages",
    "decode_shard",
    "index_bytes",
    "max_shard_bytes",
    "parse_array",
    "shard_index",
]

_ENTRY_BYTES, _CRC_BYTES = 16, 4
_BLOSC_HEADER_BYTES = 16
_CHUNK_OVERHEAD = 64  # of an inner chunk: entry in the index, checksum, header of blosc
_ABSENT = 2**64 - 1
_STRINGS = "string"

CHAINS = {
    ("bytes", "crc32c"): "plain",
    ("bytes", "blosc", "crc32c"): "blosc",
    ("vlen-utf8", "blosc", "crc32c"): "strings",
}
"""Chains of codecs of an inner chunk that are decoded, each with the name of its decoder.

A new encoding that needs another chain adds it here and to :func:`decode_chunk`.
"""


class BadShardError(Exception):
    """A shard that cannot be decoded; the message names what is wrong with it."""


@dataclass(frozen=True)
class ShardLayout:
    """How the rows of a unit are arranged in its shard.

    Attributes:
        rows: Rows of a shard.
        inner_rows: Rows of an inner chunk; divides ``rows``.
        chain: How an inner chunk is decoded: a value of :data:`CHAINS`.
    """

    rows: int
    inner_rows: int
    chain: str

    @property
    def chunks(self) -> int:
        """Number of inner chunks of a shard."""
        return self.rows // self.inner_rows


_Length = Annotated[int, Field(ge=0, le=2**40)]
_Shape = Annotated[tuple[_Length, ...], Field(max_length=16)]


class _Part(BaseModel):
    """A part of the metadata of an array; other fields are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class _Codec(_Part):
    name: Annotated[str, Field(max_length=64)]
    configuration: dict[str, Any] = Field(default_factory=dict)


class _Chunks(_Part):
    chunk_shape: _Shape


class _Grid(_Part):
    name: Literal["regular"]
    configuration: _Chunks


class _Separator(_Part):
    separator: Literal["/"]


class _Keys(_Part):
    name: Literal["default"]
    configuration: _Separator


class _ShardSettings(_Part):
    chunk_shape: _Shape
    codecs: Annotated[tuple[_Codec, ...], Field(max_length=8)]
    index_codecs: Annotated[tuple[_Codec, ...], Field(max_length=8)]
    index_location: Literal["end"] = "end"


class _Sharding(_Part):
    name: Literal["sharding_indexed"]
    configuration: _ShardSettings


class ArrayDocument(_Part):
    """The ``zarr.json`` of an array: format 3, one shard a chunk of the regular grid.

    Attributes:
        shape: Axes for views (none for samples) and rows, then those of a row.
        data_type: Name of the numpy dtype, or ``string``.
    """

    zarr_format: Literal[3]
    node_type: Literal["array"]
    shape: _Shape
    data_type: Literal[
        "string", "uint8", "uint16", "uint32", "uint64", "int8", "int32", "int64", "float16",
        "float32",
    ]  # fmt: skip
    chunk_grid: _Grid
    chunk_key_encoding: _Keys
    codecs: tuple[_Sharding]
    fill_value: int | float | str
    storage_transformers: Annotated[tuple[()], Field()] = ()

    @property
    def chain(self) -> str:
        """How an inner chunk is decoded: a value of :data:`CHAINS`.

        Raises:
            BadShardError: Its codecs or byte order are not supported.
        """
        settings = self.codecs[0].configuration
        names = tuple(codec.name for codec in settings.codecs)
        chain = CHAINS.get(names)
        strings = self.data_type == _STRINGS
        if chain is None or (chain == "strings") != strings:
            raise BadShardError(f"unsupported codecs {', '.join(names) or '(none)'}")
        wide = not strings and np.dtype(self.data_type).itemsize > 1
        endian = settings.codecs[0].configuration.get("endian", None if wide else "little")
        if not strings and endian != "little":
            raise BadShardError(f"byte order {endian} instead of little")
        index = [(codec.name, codec.configuration) for codec in settings.index_codecs]
        if index != [("bytes", {"endian": "little"}), ("crc32c", {})]:
            raise BadShardError("the index of its shards has other codecs than bytes and crc32c")
        return chain

    def layout(self, spec: ArraySpec | None, leading: int) -> ShardLayout:
        """Return how rows are arranged in a shard.

        Args:
            spec: Shape and dtype that a row must have; None for strings.
            leading: Axes before those of a row: 1 for (rows,), 2 for (views, rows).

        Raises:
            BadShardError: The array is not as the format describes it.
        """
        tail = () if spec is None else spec.shape
        data_type = _STRINGS if spec is None else spec.dtype
        if self.data_type != data_type:
            raise BadShardError(f"data type {self.data_type} instead of {data_type}")
        if len(self.shape) != leading + len(tail) or self.shape[leading:] != tail:
            raise BadShardError(f"shape {_text(self.shape)} instead of (…, {_text(tail)})")
        settings = self.codecs[0].configuration
        shard, inner = self.chunk_grid.configuration.chunk_shape, settings.chunk_shape
        before, ones = leading - 1, (1,) * (leading - 1)
        if len(shard) != len(self.shape) or len(inner) != len(self.shape):
            raise BadShardError("its shards have another number of axes than the array")
        rows, inner_rows = shard[before], inner[before]
        if shard != (*ones, rows, *tail) or inner != (*ones, inner_rows, *tail):
            raise BadShardError(f"shards of {_text(shard)} with inner chunks of {_text(inner)}")
        if not inner_rows or not rows or rows % inner_rows:
            raise BadShardError(
                f"inner chunks of {inner_rows} rows do not divide shards of {rows} rows"
            )
        return ShardLayout(rows, inner_rows, self.chain)


_ARRAY = TypeAdapter(ArrayDocument)


def parse_array(content: bytes, where: str) -> ArrayDocument:
    """Parse the ``zarr.json`` of an array.

    Raises:
        CacheDamaged: It is malformed, or it is not Zarr format 3 with shards.
    """
    values = parse_json(content, where)
    return validated(_ARRAY, values, where, "the Zarr metadata of an array cannot be used")


def max_shard_bytes(spec: ArraySpec | None, rows: int) -> int:
    """Return the largest size that a shard of so many rows can have."""
    if spec is not None and spec.page:
        chunks = MAX_CONTENT_BYTES // spec.page
        return MAX_CONTENT_BYTES + chunks * _CRC_BYTES + index_bytes(chunks)
    content = max_key_bytes(rows) if spec is None else rows * spec.row_bytes
    return content + rows * _CHUNK_OVERHEAD + _CRC_BYTES


def _text(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))


def index_bytes(chunks: int) -> int:
    """Return the bytes of the index at the end of a shard, its checksum included."""
    return chunks * _ENTRY_BYTES + _CRC_BYTES


def shard_index(content: NDArray[np.uint8], chunks: int) -> NDArray[np.uint64]:
    """Return (offset, bytes) of every inner chunk of a shard: uint64 (chunks, 2).

    Absent ones have 2^64 - 1 in both places.

    Args:
        content: The shard, or the end of it.
        chunks: Number of its inner chunks.

    Raises:
        BadShardError: The shard is too short, or the index has changed.
    """
    length = index_bytes(chunks)
    if not chunks or len(content) < length:
        raise BadShardError("it is too short for its index")
    body, checksum = content[-length:-_CRC_BYTES], content[-_CRC_BYTES:]
    if google_crc32c.value(body) != int.from_bytes(checksum.tobytes(), "little"):
        raise BadShardError("the checksum of its index does not match")
    return np.frombuffer(body, dtype="<u8").reshape(chunks, 2)


def check_index(content: bytes, chunks: int, size: int) -> NDArray[np.uint64]:
    """Return the index at the end of a shard of that size, as :func:`shard_index` does.

    Raises:
        BadShardError: It has changed, or it points beyond the end.
    """
    index = shard_index(np.frombuffer(content, np.uint8), chunks)
    for offset, length in index.tolist():  # Python integers: a sum of two uint64 may overflow
        if offset != _ABSENT and offset + length > size:
            raise BadShardError("its index points beyond its end")
    return index


def decode_shard(content: bytes, layout: ShardLayout, out: NDArray[Any]) -> None:
    """Decode all rows of a shard.

    Args:
        content: The shard.
        layout: How its rows are arranged.
        out: Where they go: (rows, ...), C order, little-endian; of objects for strings.

    Raises:
        BadShardError: The index or a checksum does not match, or an inner chunk is missing or of
            another size.
    """
    assert len(out) == layout.rows, f"{len(out)} rows for a shard of {layout.rows}"
    shard = np.frombuffer(content, np.uint8)  # what crc32c and blosc slice without a copy
    for chunk, (offset, length) in enumerate(shard_index(shard, layout.chunks).tolist()):
        rows = out[chunk * layout.inner_rows : (chunk + 1) * layout.inner_rows]
        # the slice of an absent chunk, at offset 2^64 - 1, is empty and refused as missing
        try:
            decode_chunk(shard[offset : offset + length], rows, layout.chain)
        except BadShardError as error:
            raise BadShardError(f"inner chunk {chunk} of {layout.chunks}: {error}") from None


def decode_pages(content: bytes, layout: ShardLayout) -> NDArray[np.uint8]:
    """Decode a shard of an array of pages: those that are present, uint8 (pages * page,).

    Raises:
        BadShardError: The index or a checksum does not match, or the pages are not the first ones,
            in order and without gaps.
    """
    shard = np.frombuffer(content, np.uint8)
    index = shard_index(shard, layout.chunks)
    stored = layout.inner_rows + _CRC_BYTES
    count = int((index[:, 0] != _ABSENT).sum())
    expected = np.full_like(index, _ABSENT)
    expected[:count, 0] = np.arange(count) * stored
    expected[:count, 1] = stored
    if not count or not np.array_equal(index, expected):
        raise BadShardError("its inner chunks are not the first ones, in order and without gaps")
    if len(content) != count * stored + index_bytes(layout.chunks):
        raise BadShardError(f"it has {len(content)} bytes for {count} inner chunks")
    pages = np.empty((count, layout.inner_rows), np.uint8)
    for number, page in enumerate(pages):
        try:
            decode_chunk(shard[number * stored : (number + 1) * stored], page, "plain")
        except BadShardError as error:
            raise BadShardError(f"inner chunk {number} of {count}: {error}") from None
    return pages.reshape(-1)


def decode_chunk(chunk: NDArray[np.uint8], rows: NDArray[Any], chain: str) -> None:
    """Decode one inner chunk into its rows.

    Raises:
        BadShardError: Its checksum does not match, or it does not contain these rows.
    """
    body, checksum = chunk[:-_CRC_BYTES], chunk[-_CRC_BYTES:]
    if len(body) <= (0 if chain == "plain" else _BLOSC_HEADER_BYTES):
        raise BadShardError("it is missing, or beyond the end of the shard")
    if google_crc32c.value(body) != int.from_bytes(checksum.tobytes(), "little"):
        raise BadShardError("its checksum does not match")
    # blosc trusts the size in its header, and allocates it
    size = len(body) if chain == "plain" else int.from_bytes(body[4:8].tobytes(), "little")
    if chain == "strings":
        _decode_strings(body, size, rows)
        return
    if size != rows.nbytes:
        raise BadShardError(f"{size} bytes instead of {rows.nbytes}")
    if chain == "plain":
        rows[...] = body.view(rows.dtype).reshape(rows.shape)
        return
    try:
        blosc.decompress(body, rows)
    except (RuntimeError, ValueError) as error:
        raise BadShardError(f"it cannot be decompressed by blosc: {error}") from None


def _decode_strings(body: NDArray[np.uint8], size: int, rows: NDArray[np.object_]) -> None:
    if size > max_key_bytes(len(rows)):
        raise BadShardError(f"{size} bytes of text are too many for {len(rows)} names")
    try:
        content = blosc.decompress(body)
        # the codec allocates as many as its header declares
        count = int.from_bytes(content[:4], "little")
        if count != len(rows):
            raise BadShardError(f"{count} names instead of {len(rows)}")
        rows[...] = VLenUTF8().decode(content)
    except (RuntimeError, ValueError) as error:
        raise BadShardError(f"it cannot be decoded as text: {error}") from None
