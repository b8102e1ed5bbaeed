"""Bytes and files of a cache, computed from ``docs/format.md``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from logitcache.cache.format.arrays import packed_bytes
from logitcache.cache.format.ledger import Commit, StoredArray
from logitcache.cache.format.names import SAMPLE_ARRAYS, canonical_json
from logitcache.cache.format.samples import label_set_arrays, label_specs, label_width
from logitcache.label_sets import label_sets_of
from logitcache.precompute.environment import versions
from logitcache.precompute.run.compared_rows import SAMPLED_ROWS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from logitcache.data.source import Source
    from logitcache.encoding.arrays import ArraySpec
    from logitcache.label_sets import LabelSets

__all__ = ["Footprint", "GroupPlan", "cache_footprint", "group_footprint"]

_CHUNK_OVERHEAD = 20  # per inner chunk: crc32c, and offset and length in the shard's index
_SHARD_OVERHEAD = 4  # crc32c of the index
_ARRAY_DOCUMENT, _GROUP_DOCUMENT, _ROOT_DOCUMENT = (
    1340,
    400,
    6000,
)  # approximate bytes of a zarr.json
_RECIPE = 1100  # bytes per view, in the manifest and in its copy
_SAMPLE_ROW = 24 + 8 + 1  # bytes of digest, hash and status per row; labels and sizes compress
_FINGERPRINTS, _PATCH_SIDE, _FINGERPRINT_OVERHEAD = 64, 48, 260
_COMPRESSED_SETS = 4096
_MEASURED = {f"{name}@{t}": 1 / 3 for name in ("kl_truncated", "error2") for t in range(7)}
_VIEW_ID = "v" + "0" * 16
_SHA = "0" * 64


@dataclass(frozen=True)
class Footprint:
    """Size of a group or a cache in a store.

    Attributes:
        bytes: Bytes of all objects.
        files: Number of objects.
    """

    bytes: int
    files: int

    def __add__(self, other: Footprint) -> Footprint:
        return Footprint(self.bytes + other.bytes, self.files + other.files)


@dataclass(frozen=True)
class GroupPlan:
    """A group that is not written yet.

    Attributes:
        path: Path below the root of the cache.
        views: Number of views.
        unit_rows: Rows per unit.
        specs: Arrays by name.
        row_bytes: Compressed bytes per row and view, of all arrays together.
        attribute_bytes: Bytes of what is fitted on a sample and stored in the attributes.
    """

    path: str
    views: int
    unit_rows: int
    specs: Mapping[str, ArraySpec]
    row_bytes: float
    attribute_bytes: int = 0


def group_footprint(group: GroupPlan, rows: int, capacity: int) -> Footprint:
    """Return the size of the arrays, commits and ledgers of a group.

    Args:
        group: The group.
        rows: Number of images.
        capacity: Number of rows including padding, a multiple of the rows of a block.
    """
    units = capacity // group.unit_rows
    chunks = sum(-(-group.unit_rows // spec.inner) for spec in group.specs.values())
    overhead = chunks * _CHUNK_OVERHEAD + len(group.specs) * _SHARD_OVERHEAD
    plain = sum(spec.row_bytes for spec in group.specs.values() if spec.codec == "raw")
    padding = (capacity - rows) * plain  # uncompressed, fill values take as much as numbers
    shards = group.views * (rows * group.row_bytes + padding + units * overhead)
    commits = group.views * units * _commit_bytes(group, units)
    commits += min(units, SAMPLED_ROWS) * len(canonical_json(_MEASURED))
    return Footprint(
        bytes=round(shards + 2 * (commits + group.attribute_bytes) + _documents(len(group.specs))),
        files=group.views * (units * (len(group.specs) + 1) + 1) + len(group.specs) + 1,
    )


def cache_footprint(
    groups: Sequence[GroupPlan],
    source: Source,
    capacity: int,
    unit_rows: int,
    *,
    mixed_views: int,
    fingerprint_side: int,
) -> Footprint:
    """Return the size of a whole cache when it is sealed for the first time.

    Args:
        groups: Groups of teacher outputs and features.
        source: The images.
        capacity: Number of rows including padding, a multiple of the rows of a block.
        unit_rows: Rows of a block, U.
        mixed_views: Number of views that mix images.
        fingerprint_side: Side of the squares that view fingerprints are rendered at, in pixels.
    """
    blocks = capacity // unit_rows
    rows = len(source.keys)
    total = _samples_footprint(source, blocks)
    for group in groups:
        total += group_footprint(group, rows, capacity)
    partners = GroupPlan("views", 1, unit_rows, {"partner": SAMPLE_ARRAYS["status"]}, 2.0)
    for _ in range(mixed_views):
        total += group_footprint(partners, rows, capacity)
    probe = min(_PATCH_SIDE, fingerprint_side) ** 2 * 4 + _FINGERPRINT_OVERHEAD
    probes = 2 * min(_FINGERPRINTS, rows) * probe
    recipes = _RECIPE * max((group.views for group in groups), default=0)
    once = Footprint(probes + recipes + _ROOT_DOCUMENT, 4 + _parents(groups, mixed_views))
    return total + once


def _samples_footprint(source: Source, blocks: int) -> Footprint:
    keys, sets = source.keys, label_sets_of(source)
    width = label_width(sets, len(source.class_names), source.description)
    arrays = [*SAMPLE_ARRAYS, *label_specs(width), "key"]
    some = keys[:: max(1, len(keys) // SAMPLED_ROWS)]
    key_bytes = len(keys) * sum(len(key.encode()) for key in some) // max(1, len(some))
    plan = GroupPlan("samples", 1, 1, dict.fromkeys(arrays, SAMPLE_ARRAYS["status"]), 0.0)
    commits = 2 * blocks * _commit_bytes(plan, blocks)
    return Footprint(
        bytes=len(keys) * _SAMPLE_ROW
        + key_bytes
        + _label_bytes(sets, width)
        + commits
        + _documents(len(arrays)),
        files=blocks * (len(arrays) + 1) + 1 + len(arrays) + 1,
    )


def _label_bytes(sets: LabelSets | None, width: int | None) -> int:
    """Return the bytes of label sets, from some of them that are compressed."""
    if sets is None or not len(sets):
        return 0
    some = sets.take(np.arange(0, len(sets), -(-len(sets) // _COMPRESSED_SETS)))
    packed = packed_bytes(label_specs(width), {**label_set_arrays(some, width)})
    return round(packed * len(sets) / len(some))


def _commit_bytes(group: GroupPlan, units: int) -> int:
    """Return the bytes of a commit; a ledger contains each one a second time."""
    stored = StoredArray(f"{group.path}/{'0' * 12}/c/0/{units}/0", 10**5, _SHA, _SHA)
    commit = Commit(
        group=group.path,
        view=_VIEW_ID,
        unit=units,
        rows=(units * group.unit_rows, units * group.unit_rows),
        arrays={f"{group.path}/{name}": stored for name in group.specs},
        canonical_batch=64,
        precision="float32",
        threads=1,
        versions=versions(),
    )
    return len(canonical_json(commit.to_json()))


def _documents(arrays: int) -> int:
    """Return the bytes of a group's documents and of their second copies."""
    return 2 * (arrays * _ARRAY_DOCUMENT + _GROUP_DOCUMENT)


def _parents(groups: Sequence[GroupPlan], mixed_views: int) -> int:
    """Return the number of Zarr groups that only contain other groups."""
    parents = {path for group in groups for path in _above(group.path)}
    parents -= {group.path for group in groups}
    return len(parents | ({"views"} if mixed_views else set()))


def _above(path: str) -> list[str]:
    parts = path.split("/")[:-1]
    return ["/".join(parts[: n + 1]) for n in range(len(parts))]
