"""Writing of one unit: a shard of each array, then the commit that records them.

A unit is written whole or not at all: without its commit, none of its shards is used.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from logitcache.cache.format.arrays import open_array
from logitcache.cache.format.ledger import Commit, StoredArray, write_commit
from logitcache.cache.format.names import SAMPLES, VIEWS, commit_key, content_sha256
from logitcache.errors import DataMismatch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from logitcache.cache.format.placement import Placement
    from logitcache.cache.store.base import Location
    from logitcache.cache.store.zarr_store import RecordingStore

__all__ = ["Conditions", "commit_unit"]


@dataclass(frozen=True)
class Conditions:
    """Under which conditions a unit was computed; part of its commit.

    Attributes:
        canonical_batch: Images of one forward, 0 where nothing is forwarded.
        precision: Of the forward.
        threads: Of the forward.
        versions: Libraries and processor.
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
        store: The same, as zarr writes to it.
        placement: Where the arrays are.
        unit: Number of the unit.
        arrays: By name, as many rows each as the unit has.
        conditions: Under which it was computed.
        measured: What the encoding lost on a sample of its rows, as sums by name.
        recorded: What it was committed with before it was damaged; written again, whatever the
            conditions are now, where the unit comes out the same.

    Raises:
        CacheDamaged: The metadata of an array is not as the format describes it.
        DataMismatch: They are samples or partners, and others than those that were recorded.
    """
    if location.size(commit_key(placement.group, placement.view, unit)) is not None:
        return
    if recorded is not None:
        _check_recorded(location, placement, unit, arrays, recorded)
    start = unit * placement.unit_rows
    rows = slice(start, start + placement.unit_rows)
    stored = {}
    for name, content in sorted(arrays.items()):
        path, key = placement.path(name), placement.shard_key(name, unit)
        assert len(content) == placement.unit_rows, f"{path}: {placement.unit_rows} rows a unit"
        placement.layout(location, name, rows.stop)  # before zarr reads it
        array = open_array(store, path)
        store.replacing.add(key)
        try:
            array[rows if placement.slot is None else (placement.slot, rows)] = content
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
        rows=(rows.start, rows.stop),
        arrays=stored,
        canonical_batch=conditions.canonical_batch,
        precision=conditions.precision,
        threads=conditions.threads,
        versions=conditions.versions,
        measured=dict(measured or {}),
    )
    write_commit(location, commit)


def _check_recorded(
    location: Location,
    placement: Placement,
    unit: int,
    arrays: Mapping[str, NDArray[Any]],
    recorded: Commit,
) -> None:
    """Refuse samples and partners that differ from those that were committed.

    They are of other images, or of pairs that no teacher saw.
    """
    if placement.group not in {SAMPLES, VIEWS}:
        return
    differing = [
        name
        for name, content in sorted(arrays.items())
        if recorded.arrays[placement.path(name)].content_sha256 != content_sha256(content)
    ]
    if differing:
        raise DataMismatch(
            "these are not the images the cache was made from",
            where=f"{location}, {placement.group}, view {placement.view}, unit {unit}",
            expected="what was committed of them",
            got=f"another {', '.join(differing)}",
            hint="point --data at the original images; if some were withdrawn since, "
            "move the withdrawn/ folder away, repair, and put it back",
        )
