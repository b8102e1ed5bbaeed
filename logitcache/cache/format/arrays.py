"""Creation of Zarr arrays: one shard per unit and view, with checksums.

The only module that talks to zarr's array interface.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import numcodecs
import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec

from logitcache.cache.format.names import ATTRIBUTE, MAX_CONTENT_BYTES, inner_rows
from logitcache.cache.store.zarr_store import RecordingStore
from logitcache.errors import CacheDamaged, LogitcacheError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from zarr.core.array_spec import ArrayConfigParams

    from logitcache.cache.store.base import Location
    from logitcache.encoding.arrays import ArraySpec, Encoded

__all__ = [
    "create_array",
    "create_group",
    "open_array",
    "pack",
    "packed_bytes",
    "resize",
    "unpack",
    "write_attributes",
    "write_group",
]

_BLOSC = numcodecs.Blosc(cname="zstd", clevel=1, shuffle=numcodecs.Blosc.SHUFFLE)
# zarr leaves out the object of a shard of fill values alone, and its unit would look missing
_CONFIG: ArrayConfigParams = {"write_empty_chunks": True}


def create_group(store: RecordingStore, path: str, attributes: Mapping[str, Any]) -> None:
    """Create a group with logitcache's attributes; undeclared objects at its path are removed.

    Nothing is removed below the root, where other runs put their claims first.
    """
    zarr.create_group(
        store,
        path=path or None,
        attributes={ATTRIBUTE: dict(attributes)},
        overwrite=bool(path),
        zarr_format=3,
    )


def write_group(location: Location, path: str, attributes: Mapping[str, Any]) -> None:
    """Write the metadata of a group again, whatever is there now; its arrays stay."""
    # zarr refuses to create a group that exists, and with overwrite=True it deletes the arrays
    location.delete(f"{path}/zarr.json")
    zarr.create_group(
        RecordingStore(location), path=path, attributes={ATTRIBUTE: dict(attributes)}, zarr_format=3
    )


def write_attributes(store: RecordingStore, path: str, attributes: Mapping[str, Any]) -> None:
    """Replace logitcache's attributes of a group."""
    group = zarr.open_group(
        store, path=path or None, mode="r+", zarr_format=3, use_consolidated=False
    )
    group.update_attributes({ATTRIBUTE: dict(attributes)})


def create_array(
    store: RecordingStore, path: str, spec: ArraySpec | None, leading: tuple[int, ...], unit: int
) -> None:
    """Create one array.

    Its axes are named ``view``, ``row``, and ``<array>_1``, ``<array>_2``, … for those of a row; an
    array of pages has the axes ``unit`` and ``<array>_1``.

    Args:
        store: Zarr store of the cache.
        path: Path below the root.
        spec: Shape of a row, dtype and fill; None for strings.
        leading: Length of the axes before a row's own: (rows,) or (views, rows).
        unit: Rows of a shard.
    """
    name = path.rsplit("/", 1)[-1]
    # each array has names of its own: xarray takes axes of one name to be of one length
    grid = _grid(spec, leading, unit)
    axes = ("unit",) if spec is not None and spec.page else ("view", "row")[-len(leading) :]
    own = tuple(f"{name}_{n + 1}" for n in range(len(grid.shape) - len(axes)))
    with warnings.catch_warnings():
        # strings are no part of the Zarr v3 core yet; every implementation we name reads them
        warnings.filterwarnings("ignore", message=".*(specification|vlen-utf8|string).*")
        zarr.create_array(
            store,
            name=path,
            shape=grid.shape,
            shards=grid.shards,
            chunks=grid.chunks,
            dtype="str" if spec is None else spec.dtype,
            fill_value="" if spec is None else np.dtype(spec.dtype).type(spec.fill),
            compressors=_compressors(spec),
            dimension_names=(*axes, *own),
            config=_CONFIG,
            zarr_format=3,
        )


class _Grid(NamedTuple):
    """Shape of an array, of its shards, and of their inner chunks."""

    shape: tuple[int, ...]
    shards: tuple[int, ...]
    chunks: tuple[int, ...]


def _grid(spec: ArraySpec | None, leading: tuple[int, ...], unit: int) -> _Grid:
    """Return how an array is divided; see :func:`create_array`."""
    if spec is not None and spec.page:
        units = leading[0] // unit
        return _Grid((units, MAX_CONTENT_BYTES), (1, MAX_CONTENT_BYTES), (1, spec.page))
    tail = () if spec is None else spec.shape
    per_view = (1,) * (len(leading) - 1)
    inner = inner_rows(unit) if spec is None else inner_rows(unit, spec.inner)
    if spec is not None and spec.whole:
        inner = unit
    return _Grid((*leading, *tail), (*per_view, unit, *tail), (*per_view, inner, *tail))


def open_array(store: RecordingStore, path: str) -> zarr.Array[Any]:
    """Open an array to write to it; its metadata must have been checked.

    Raises:
        CacheDamaged: Its metadata cannot be read.
    """
    try:
        array: Any = zarr.open_array(store, path=path, mode="r+", zarr_format=3)
        # open_array ignores its argument, and with_config is as new as zarr 3.1.6
        asynchronous: Any = zarr.AsyncArray(array.metadata, array.store_path, _CONFIG)
        configured: zarr.Array[Any] = zarr.Array(asynchronous)
    except LogitcacheError:
        raise
    except Exception as error:  # zarr has no common base class for errors in metadata
        raise CacheDamaged(
            "the Zarr metadata of an array cannot be read",
            where=f"{path}/zarr.json",
            got=f"{type(error).__name__}: {error}"[:200],
        ) from error
    return configured


def resize(store: RecordingStore, path: str, leading: tuple[int, ...]) -> None:
    """Grow the axes before a row's own; no object is touched but the metadata."""
    array = open_array(store, path)
    array.resize((*leading, *array.shape[len(leading) :]))


def packed_bytes(specs: Mapping[str, ArraySpec], encoded: Encoded) -> float:
    """Return the approximate size in bytes of encoded rows in a shard."""
    return sum(len(content) for content in pack(specs, encoded).values())


def pack(specs: Mapping[str, ArraySpec], encoded: Encoded) -> dict[str, bytes]:
    """Return the bytes of an inner chunk by array for encoded rows, without its checksum."""
    return {
        name: encoded[name].tobytes()
        if spec.codec == "raw"
        else _BLOSC.encode(np.ascontiguousarray(encoded[name]).view(f"V{spec.element_bytes}"))
        for name, spec in specs.items()
    }


def unpack(specs: Mapping[str, ArraySpec], packed: Mapping[str, bytes]) -> Encoded:
    """Return the encoded rows that :func:`pack` was called with."""
    return {
        name: np.frombuffer(
            packed[name] if spec.codec == "raw" else _BLOSC.decode(packed[name]), spec.dtype
        ).reshape(-1, *spec.shape)
        for name, spec in specs.items()
    }


def _compressors(spec: ArraySpec | None) -> list[Any]:
    if spec is not None and spec.codec == "raw":
        return [Crc32cCodec()]
    typesize = 1 if spec is None else spec.element_bytes
    blosc = BloscCodec(cname="zstd", clevel=1, shuffle="shuffle", typesize=typesize)
    return [blosc, Crc32cCodec()]
