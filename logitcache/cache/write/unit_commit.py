"""Writing of one unit: a shard of each array, then the commit that records them.

Without its commit, none of the shards of a unit is used.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from logitcache.cache.format.arrays import open_array
from logitcache.cache.format.data_arrays import DATA
from logitcache.cache.format.ledger import Commit, StoredArray, write_commit
from logitcache.cache.format.names import commit_key, content_sha256
from logitcache.errors import DataMismatch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from logitcache.cache.format.placement import Placement
    from logitcache.cache.store.base import Location
    from logitcache.cache.store.zarr_store import RecordingStore

__all__ = ["Conditions", "commit_copy", "commit_unit"]


@dataclass(frozen=True)
class Conditions:
    """Conditions under which a unit was computed; part of its commit.

    Attributes:
        canonical_batch: Images of one forward pass; 0 without one.
        precision: Data type of the forward pass.
        threads: Threads of the forward pass.
        versions: Versions of the libraries, and the processor.
    """

    canonical_batch: int = 0
    precision: str = ""
    threads: int = 0
    versions: dict[str, str] = field(default_factory=dict)


def commit_unit(
    location: Location,
    store: RecordingStore,
    placement: Placement,
    unit: int,
    arrays: Mapping[str, NDArray[Any]],
    conditions: Conditions,
    measured: Mapping[str, float] | None = None,
    recorded: Commit | None = None,
) -> None:
    """Write every array of a unit, then its commit; a committed unit is left as it is.

    Args:
        location: The cache.
        store: Zarr store of the cache.
        placement: Placement of the arrays.
        unit: Number of the unit.
        arrays: Rows of the unit by name of the array; bytes of arrays of pages, in whole pages.
        conditions: Conditions under which it was computed.
        measured: Sums of the encoding losses over a sample of its rows, by name.
        recorded: Commit of the unit before it was damaged; written again, whatever the conditions
            are now, where the shards are the same.

    Raises:
        CacheDamaged: The metadata of an array are not as the format describes them.
        DataMismatch: The arrays describe images, and differ from the recorded ones.
    """
    if location.size(commit_key(placement.group, placement.view, unit)) is not None:
        return
    if recorded is not None:
        _check_recorded(location, placement, unit, arrays, recorded)
    start = unit * placement.unit_rows
    stop = start + placement.unit_rows
    stored = {}
    for name, content in sorted(arrays.items()):
        path, key = placement.path(name), placement.shard_key(name, unit)
        assert placement.page(name) or len(content) == placement.unit_rows, path
        placement.layout(location, name, stop)  # checked before zarr parses the metadata
        array = open_array(store, path)
        # zarr would merge the rows into a shard that an interrupted run has left
        store.replacing.add(key)
        try:
            array[placement.place(name, unit, len(content))] = content
        finally:
            store.replacing.discard(key)
        size, digest = store.written.pop(key)
        stored[path] = StoredArray(key, size, digest, content_sha256(content))
    if recorded is not None and recorded.arrays == stored:
        write_commit(location, recorded)
        return
    commit = Commit(
        group=placement.group,
        view=placement.view,
        unit=unit,
        rows=(start, stop),
        arrays=stored,
        canonical_batch=conditions.canonical_batch,
        precision=conditions.precision,
        threads=conditions.threads,
        versions=conditions.versions,
        measured=dict(measured or {}),
    )
    write_commit(location, commit)


def commit_copy(
    location: Location,
    placement: Placement,
    unit: int,
    commit: Commit,
    contents: Mapping[str, bytes],
) -> None:
    """Write the shards of a unit of another cache as they are, then a commit with new keys.

    Args:
        location: The cache.
        placement: Placement of the arrays in it.
        unit: Number of the unit in it.
        commit: Commit of the unit in the other cache.
        contents: Shards by name of the array, compared with that commit.
    """
    start = unit * placement.unit_rows
    stored = {}
    for name, content in sorted(contents.items()):
        path, key = placement.path(name), placement.shard_key(name, unit)
        location.write(key, content)
        stored[path] = replace(commit.arrays[path], key=key)
    copied = replace(
        commit,
        group=placement.group,
        view=placement.view,
        unit=unit,
        rows=(start, start + placement.unit_rows),
        arrays=stored,
    )
    write_commit(location, copied)


def _check_recorded(
    location: Location,
    placement: Placement,
    unit: int,
    arrays: Mapping[str, NDArray[Any]],
    recorded: Commit,
) -> None:
    """Refuse data that differ from the committed ones: of other images or pairs."""
    if placement.group not in DATA:
        return
    differing = [
        name
        for name, content in sorted(arrays.items())
        if recorded.arrays[placement.path(name)].content_sha256 != content_sha256(content)
    ]
    if differing:
        raise DataMismatch(
            "the images are not the ones that the cache was computed from",
            where=f"{location}, {placement.group}, view {placement.view}, unit {unit}",
            expected="the committed keys, sizes, digests, labels, partners and encoded images",
            got=f"another {', '.join(differing)}",
            hint="point --data at the original images; if some were excluded since, "
            "move the withdrawn/ folder away, repair, and move it back",
        )
