"""Caches whose outputs are functions of key, view and teacher, so that any part can be computed.

Two teachers in different units, two taps, a table; views that mix as well. No image, no network.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from logitcache.cache.format.fingerprints import write_fingerprints
from logitcache.cache.format.groups import FeatureGroup, RowGroup, TableGroup, TeacherGroup
from logitcache.cache.format.manifest import DataRecord, Segment, TeacherRecord
from logitcache.cache.format.names import SAMPLE_ARRAYS, Status, canonical_json, sha256
from logitcache.cache.format.partners import mixed_views
from logitcache.cache.store.open import locate
from logitcache.cache.write.unit_commit import Conditions
from logitcache.cache.write.writer import CacheWriter
from logitcache.data.identity import key_hash
from logitcache.encoding.arrays import filled
from logitcache.encoding.dense import DenseEncoding
from logitcache.encoding.features import FeatureEncoding
from logitcache.encoding.sparse import SparseEncoding
from logitcache.precompute.run.summary import accuracy_of, images_fingerprint
from logitcache.views.mix import match_partners
from logitcache.views.spec import ViewsConfig

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from logitcache.cache.store.base import Location
    from logitcache.encoding.arrays import Encoded

UNIT, CLASSES = 16, 12
CLASS_NAMES = ("bird", "cat", "dog", "eel")
VIEWS = {view.id: view.to_json() for view in ViewsConfig(count=2).views()}
MIXED = {view.id: view.to_json() for view in ViewsConfig(count=1, mixup_alpha=1.0).views()}
TEACHERS: dict[str, Any] = {
    "dense": DenseEncoding(CLASSES, "float16"),
    "sparse": SparseEncoding(CLASSES, 4, "codes", 6),
}
UNIT_ROWS = {"dense": UNIT, "sparse": UNIT // 2}
TAPS: dict[str, Any] = {
    "a": FeatureEncoding("vector", (5,), "int8"),
    "b": FeatureEncoding("vector", (3,)),
}
TABLE = np.arange(CLASSES * 2, dtype=np.float32).reshape(CLASSES, 2)
CONDITIONS = Conditions(4, "float32", 1, {"numpy": "2"})


def keys_of(count: int, first: int = 0) -> list[str]:
    """Return keys of images, some of them unreadable, some without a label."""
    names = ("bird", "cat", "dog", "eel", "none", "bad")
    return [f"{names[n % 6]}/{n:05d}.jpg" for n in range(first, first + count)]


def ordered(keys: Sequence[str]) -> list[str]:
    """Return keys in the order of the rows of a segment."""
    return sorted(keys, key=lambda key: (key_hash(key), key.encode()))


def label_of(key: str) -> int:
    name = key.partition("/")[0]
    return CLASS_NAMES.index(name) if name in CLASS_NAMES else -1


def numbers_of(text: str, count: int) -> NDArray[np.float32]:
    """Return numbers that depend on a text alone."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    numbers: NDArray[np.float32] = (
        np.random.default_rng(seed).normal(0, 3, count).astype(np.float32)
    )
    return numbers


@dataclass
class Part:
    """What a cache is built of.

    Attributes:
        segments: Keys of each segment.
        views: Ids of the views.
        teachers: Names of the teachers.
        taps: Names of the taps of ``dense``.
        unit: U.
        seed: Part of all outputs: another one stands for another run that rounds differently.
    """

    segments: Sequence[Sequence[str]]
    views: Sequence[str] = tuple(VIEWS)
    teachers: Sequence[str] = ("dense", "sparse")
    taps: Sequence[str] = ("a", "b")
    unit: int = UNIT
    seed: str = ""


def build(path: Path | Location, part: Part) -> None:
    """Compute a cache of this content, and seal it."""
    rows, starts, end = [], [], 0
    for keys in part.segments:
        padded = -(-len(keys) // part.unit) * part.unit
        rows += [*ordered(keys), *[""] * (padded - len(keys))]
        starts.append(end)
        end += padded
    writer = _declared(path, part, starts)
    samples = _samples(rows)
    for unit in range(end // part.unit):
        block = slice(unit * part.unit, (unit + 1) * part.unit)
        writer.write_samples(unit, {name: array[block] for name, array in samples.items()})
    partners = {
        view: _partners(writer, samples, view, part) for view in mixed_views(writer.manifest)
    }
    for group in writer.row_groups().values():
        for view in group.view_ids:
            with_partners = (
                [f"{key}+{rows[p]}" for key, p in zip(rows, partners[view], strict=True)]
                if view in partners
                else rows
            )
            _write_group(writer, group, view, with_partners, samples, part.seed)
    write_fingerprints(writer.location, _fingerprints(part, rows, starts, partners))
    writer.seal(images_fingerprint(writer), accuracy_of(writer))


def _declared(path: Path | Location, part: Part, starts: Sequence[int]) -> CacheWriter:
    segments = [
        Segment(start=start, rows=len(keys), listing_sha256=_listing(keys))
        for start, keys in zip(starts, part.segments, strict=True)
    ]
    data = DataRecord(description="functions of keys", class_names=CLASS_NAMES)
    writer = CacheWriter.create(
        locate(path, write=True),
        unit_rows=part.unit,
        segment=segments[0],
        data=data,
        versions={"numpy": "2"},
    )
    for segment in segments[1:]:
        writer.add_segment(segment)
    writer.add_views({view: {**VIEWS, **MIXED}[view] for view in part.views})
    for name in part.teachers:
        lock = {"weights_sha256": name}
        digest = sha256(canonical_json(lock))
        writer.add_teacher(
            TeacherRecord(lock=lock, canonical_batch=4, source=name, versions={"numpy": "2"}),
            TeacherGroup(
                teacher=name,
                num_classes=CLASSES,
                encoding=TEACHERS[name],
                optional=("lse",),
                unit_rows=UNIT_ROWS[name] * part.unit // UNIT,
                slots=tuple(part.views),
                lock_sha256=digest,
                class_names_sha256=sha256(canonical_json(list(CLASS_NAMES))),
            ),
        )
        if name != "dense":
            continue
        for tap in part.taps:
            taps = FeatureGroup(
                teacher=name,
                tap=tap,
                encoding=TAPS[tap],
                unit_rows=part.unit,
                slots=tuple(part.views),
                lock_sha256=digest,
            )
            writer.add_group(taps)
        table = TableGroup(
            teacher=name,
            table="t",
            width=2,
            unit_rows=CLASSES,
            lock_sha256=digest,
            class_names_sha256=sha256(canonical_json(list(CLASS_NAMES))),
        )
        writer.add_group(table)
        writer.write_unit(table, "-", 0, table.encode(TABLE), Conditions())
    return writer


def _listing(keys: Sequence[str]) -> str:
    return sha256("".join(f"{key}\0{label_of(key)}\0" for key in ordered(keys)).encode())


def _samples(rows: Sequence[str]) -> Encoded:
    arrays = filled(SAMPLE_ARRAYS, len(rows))
    arrays["key"] = np.array(rows, dtype=object)
    for row, key in enumerate(rows):
        if not key:
            continue
        bad = key.startswith("bad")
        arrays["hash"][row] = key_hash(key)
        arrays["label"][row] = label_of(key)
        arrays["status"][row] = Status.UNREADABLE if bad else Status.OK
        arrays["bytes"][row] = 0 if bad else len(key)
        digest = hashlib.blake2b(key.encode(), digest_size=16).digest()
        arrays["digest"][row] = 0 if bad else list(digest)
    return arrays


def _partners(writer: CacheWriter, samples: Encoded, view: str, part: Part) -> NDArray[np.int64]:
    """Match the rows of every block, write the offsets, and return rows."""
    recipe = {**VIEWS, **MIXED}[view]
    found = np.arange(len(samples["key"]))
    hashes: Any = samples["hash"]
    for unit in range(len(found) // part.unit):
        start = unit * part.unit
        ok = start + np.flatnonzero(samples["status"][start : start + part.unit] == Status.OK)
        matched = match_partners(recipe["seed"], recipe["draw"], hashes[ok])
        found[ok] = ok[matched]
        offsets = np.full(part.unit, -1, np.int64)
        offsets[ok - start] = found[ok] - start
        writer.write_partners(view, unit, offsets)
    return found


def _write_group(
    writer: CacheWriter,
    group: RowGroup,
    view: str,
    texts: Sequence[str],
    samples: Encoded,
    seed: str,
) -> None:
    ok = np.flatnonzero(samples["status"] == Status.OK)
    arrays = filled(group.specs(), len(texts))
    names = [f"{seed}|{texts[row]}|{view}|{group.name}" for row in ok.tolist()]
    numbers = [numbers_of(name, group.row_numbers) for name in names]
    outputs = np.array(numbers, np.float32).reshape(len(ok), group.row_numbers)
    labels: Any = samples["label"][ok]
    for name, array in group.encode(outputs, labels).items():
        arrays[name][ok] = array
    for unit in range(len(texts) // group.unit_rows):
        rows = slice(unit * group.unit_rows, (unit + 1) * group.unit_rows)
        content = {name: array[rows] for name, array in arrays.items()}
        writer.write_unit(group, view, unit, content, CONDITIONS)


def _fingerprints(
    part: Part, rows: Sequence[str], starts: Sequence[int], partners: dict[str, NDArray[np.int64]]
) -> dict[str, Any]:
    """Return a document with a fingerprint of every third image in turn for each view."""
    probes = []
    shown = [row for row, key in enumerate(rows) if key and not key.startswith("bad")]
    for number, row in enumerate(shown[::3]):
        view = part.views[number % len(part.views)]
        partner = int(partners[view][row]) if view in partners else None
        probes.append({"view": view, "row": row, "partner": None if partner == row else partner})
    return {"views": list(part.views), "segments": list(starts), "versions": {}, "probes": probes}


def files_of(path: Path) -> dict[str, bytes]:
    """Return all files of a folder by name."""
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def computed_files(path: Path) -> dict[str, bytes]:
    """Return the files of a cache that do not depend on whether it was computed or derived.

    They are arrays, their metadata, commits and ledgers; not the root, which names its origin, and
    what contains or digests the root.
    """
    varying = ("zarr.json", "probes/", "revisions/")
    return {
        name: content for name, content in files_of(path).items() if not name.startswith(varying)
    }
