"""Faults to inject into a sealed cache, each with the cause it must be given."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np

from logitcache.cache.format.arrays import open_array
from logitcache.cache.read.diagnose import Cause
from logitcache.cache.store.open import locate
from logitcache.cache.store.zarr_store import RecordingStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

UNIT = 1
"""The unit of slot 0 that is damaged."""


@dataclass(frozen=True)
class Damage:
    """One fault.

    Attributes:
        inject: Called with the cache and the path of an array of a teacher.
        cause: What it must be called.
        place: What the message must name besides.
    """

    inject: Callable[[Path, str], None]
    cause: Cause
    place: str = "unit 1, array"


def shard(root: Path, array: str, unit: int = UNIT) -> Path:
    """Return the shard of a unit of slot 0."""
    found = root / array / "c" / "0" / str(unit)
    while found.is_dir():
        found = found / "0"
    return found


def flip(path: Path, position: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


def edit_json(path: Path, change: Callable[[Any], None]) -> None:
    values = json.loads(path.read_bytes())
    change(values)
    path.write_text(json.dumps(values))


def open_for_harm(root: Path, array: str) -> Any:
    return open_array(RecordingStore(locate(root, write=True)), array)


def rows_of(root: Path, array: str) -> slice:
    unit_rows = open_for_harm(root, array).shards[1]
    return slice(UNIT * unit_rows, (UNIT + 1) * unit_rows)


def _missing(root: Path, array: str) -> None:
    shard(root, array).unlink()


def _empty(root: Path, array: str) -> None:
    shard(root, array).write_bytes(b"")


def _truncated(root: Path, array: str) -> None:
    path = shard(root, array)
    path.write_bytes(path.read_bytes()[:-9])


def _payload(root: Path, array: str) -> None:
    flip(shard(root, array), 5, 3)


def _index(root: Path, array: str) -> None:
    flip(shard(root, array), -12)


def _metadata(root: Path, array: str) -> None:
    path = root / array / "zarr.json"
    flip(path, path.read_bytes().index(b'"fill_value"') + 3)


def _zeros(root: Path, array: str) -> None:
    path = shard(root, array)
    path.write_bytes(bytes(path.stat().st_size))


def _moved(root: Path, array: str) -> None:
    shard(root, array).write_bytes(shard(root, array, 0).read_bytes())


def _stale(root: Path, array: str) -> None:
    """Every inner chunk is well-formed and holds an answer: to something else."""
    opened, rows = open_for_harm(root, array), rows_of(root, array)
    content = opened[0, rows]
    opened[0, rows] = np.roll(content, 1, axis=0)


def _chunks_missing(root: Path, array: str) -> None:
    path, opened = shard(root, array), open_for_harm(root, array)
    count = opened.shards[1] // opened.chunks[1]
    assert count == 16
    content = bytearray(path.read_bytes())
    index = bytearray(content[-4 - 16 * count : -4])
    for chunk in (2, 3, 11):
        index[16 * chunk : 16 * (chunk + 1)] = b"\xff" * 16
    content[-4 - 16 * count :] = index + struct.pack("<I", google_crc32c.value(bytes(index)))
    path.write_bytes(content)


def _chunk_filled(root: Path, array: str) -> None:
    opened, rows = open_for_harm(root, array), rows_of(root, array)
    start = rows.start + 4 * opened.chunks[1]
    opened[0, start : start + opened.chunks[1]] = opened.fill_value


def _without_shards(root: Path, array: str) -> None:
    group = array.rpartition("/")[0]
    for folder in (root / group).glob("*/c"):
        shard(root, str(folder.parent.relative_to(root))).unlink()


def _commit_of(root: Path, array: str) -> Path:
    group = array.rpartition("/")[0]
    attributes = json.loads((root / group / "zarr.json").read_bytes())["attributes"]
    view: str = attributes["logitcache"]["view_ids"][0]
    return root / "commits" / group / view / f"{UNIT}.json"


def _without_commit(root: Path, array: str) -> None:
    _commit_of(root, array).unlink()


def _commit(root: Path, array: str) -> None:
    edit_json(_commit_of(root, array), lambda commit: commit.update(unit=0))


def _ledger(root: Path, array: str) -> None:
    (path,) = root.glob(f"ledger/{array.rpartition('/')[0]}/{_commit_of(root, array).parts[-2]}.*")
    edit_json(path, lambda ledger: ledger["commits"].reverse())


def _manifest(root: Path, _: str) -> None:
    def swap(values: Any) -> None:
        about = values["attributes"]["logitcache"]
        about["data"]["class_names"] = about["data"]["class_names"][::-1]

    edit_json(root / "zarr.json", swap)


def _no_manifest(root: Path, _: str) -> None:
    (root / "zarr.json").write_bytes((root / "zarr.json").read_bytes()[:-30])


def _views_swapped(root: Path, array: str) -> None:
    def swap(values: Any) -> None:
        values["attributes"]["logitcache"]["view_ids"].reverse()

    path = root / array.rpartition("/")[0] / "zarr.json"
    edit_json(path, swap)


def _revision(root: Path, _: str) -> None:
    edit_json(root / "revisions/1.json", lambda values: values["segments"].append([64, 1]))


def _copies(root: Path, _: str) -> None:
    flip(root / "revisions/1.copies.json", 40)


def _samples_shuffled(root: Path, _: str) -> None:
    opened = open_for_harm(root, "samples/hash")
    content = opened[:]
    opened[:16] = content[:16][::-1]


def _samples_missing(root: Path, _: str) -> None:
    (root / "samples/key/c/2").unlink()


DAMAGES = {
    "missing object": Damage(_missing, Cause.MISSING),
    "empty object": Damage(_empty, Cause.EMPTY),
    "truncated": Damage(_truncated, Cause.TRUNCATED),
    "one bit of the payload": Damage(_payload, Cause.CHUNK_DAMAGED),
    "one bit of the index": Damage(_index, Cause.INDEX),
    "one bit of the metadata": Damage(_metadata, Cause.METADATA, "zarr.json"),
    "zeros of the same size": Damage(_zeros, Cause.ZEROS),
    "a shard of another position": Damage(_moved, Cause.MOVED),
    "a stale shard": Damage(_stale, Cause.FOREIGN),
    "3 of 16 inner chunks missing": Damage(_chunks_missing, Cause.CHUNKS_MISSING),
    "an inner chunk of fill": Damage(_chunk_filled, Cause.CHUNK_FILLED),
    "a commit without its shards": Damage(_without_shards, Cause.MISSING),
    "shards without their commit": Damage(_without_commit, Cause.COMMIT, "unit 1"),
    "an edited commit": Damage(_commit, Cause.COMMIT, "unit 1"),
    "an edited ledger": Damage(_ledger, Cause.LEDGER, "view v"),
    "an edited manifest": Damage(_manifest, Cause.MANIFEST, "zarr.json"),
    "half a manifest": Damage(_no_manifest, Cause.MANIFEST, "zarr.json"),
    "views swapped": Damage(_views_swapped, Cause.METADATA, "zarr.json"),
    "an edited revision": Damage(_revision, Cause.REVISION, "revisions/1.json"),
    "one bit of the copies": Damage(_copies, Cause.REVISION, "revisions/1.copies.json"),
    "samples shuffled": Damage(_samples_shuffled, Cause.FOREIGN, "samples, unit 0, array hash"),
    "samples missing": Damage(_samples_missing, Cause.MISSING, "samples, unit 2, array key"),
}
