"""Caches out of thin air: any encoding, any rows, no image and no network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from logitcache.cache.format.groups import TeacherGroup
from logitcache.cache.format.manifest import DataRecord, Segment, TeacherRecord
from logitcache.cache.format.names import SAMPLE_ARRAYS, Status, canonical_json, sha256
from logitcache.cache.store.open import locate
from logitcache.cache.write.unit_commit import Conditions
from logitcache.cache.write.writer import CacheWriter
from logitcache.data.identity import key_hash
from logitcache.encoding.arrays import filled
from logitcache.encoding.logits import label_log_probs, log_softmax
from logitcache.views.spec import ViewsConfig

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from logitcache.cache.store.base import Location
    from logitcache.encoding.arrays import Encoded
    from logitcache.encoding.kinds import Encoding

UNIT = 16
CLASS_NAMES = tuple("abcdefghij")
LOCK = {"a": 1}
_VIEW = ViewsConfig(count=0, eval=True).eval_view()
VIEW, RECIPE = _VIEW.id, _VIEW.to_json()
MORE_VIEWS = {view.id: view.to_json() for view in ViewsConfig(count=2).views()}
"""Recipes of two further views, by id."""


def samples_of(rows: int, unreadable: tuple[int, ...] = (), unit: int = UNIT) -> Encoded:
    """Return the samples of a cache of that many rows, padded to whole units."""
    capacity = -(-rows // unit) * unit
    arrays = filled(SAMPLE_ARRAYS, capacity)
    keys = [f"img/{index:06d}.jpg" for index in range(rows)]
    arrays["key"] = np.array(keys + [""] * (capacity - rows), dtype=object)
    arrays["hash"][:rows] = [key_hash(key) for key in keys]
    arrays["digest"][:rows] = 7
    arrays["bytes"][:rows] = 100
    arrays["label"][:rows] = np.arange(rows) % 3
    arrays["status"][:rows] = Status.OK
    arrays["status"][list(unreadable)] = Status.UNREADABLE
    return arrays


def start_cache(path: Path | Location, rows: int, unit: int = UNIT) -> CacheWriter:
    """Create a cache for some rows and declare one view."""
    writer = CacheWriter.create(
        locate(path, write=True),
        unit_rows=unit,
        segment=Segment(start=0, rows=rows),
        data=DataRecord(description="thin air", class_names=CLASS_NAMES),
        versions={"numpy": "2"},
    )
    writer.add_views({VIEW: RECIPE})
    return writer


def group_of(name: str, encoding: Encoding, unit_rows: int = UNIT) -> TeacherGroup:
    """Return the group of a teacher that saw the one view."""
    return TeacherGroup(
        teacher=name,
        num_classes=encoding.num_classes,
        encoding=encoding,
        optional=("lse", "label_logp"),
        unit_rows=unit_rows,
        slots=(VIEW,),
        lock_sha256=sha256(canonical_json(LOCK)),
        class_names_sha256=sha256(canonical_json(list(CLASS_NAMES))),
    )


def declare(
    writer: CacheWriter, name: str, encoding: Encoding, unit_rows: int = UNIT
) -> TeacherGroup:
    """Declare a teacher."""
    group = group_of(name, encoding, unit_rows)
    writer.add_teacher(TeacherRecord(lock=LOCK, canonical_batch=4, source="thin air"), group)
    return group


def write_samples(writer: CacheWriter, samples: Encoded) -> None:
    """Commit all units of the samples."""
    size = writer.manifest.unit_rows
    for unit in range(len(samples["key"]) // size):
        rows = slice(unit * size, (unit + 1) * size)
        writer.write_samples(unit, {name: array[rows] for name, array in samples.items()})


def encode(group: TeacherGroup, logits: NDArray[np.float32], samples: Encoded) -> Encoded:
    """Encode logits of all rows; rows that are not ok keep the fill."""
    arrays = filled(group.specs(), len(samples["key"]))
    ok = np.flatnonzero(samples["status"] == Status.OK)
    log_probs, lse = log_softmax(logits[ok])
    encoded: dict[str, Any] = group.encoding.encode(log_probs)
    encoded["lse"] = lse
    labels: Any = samples["label"][ok]
    encoded["label_logp"] = label_log_probs(log_probs, labels)
    for name, array in encoded.items():
        arrays[name][ok] = array
    return arrays


def write_teacher(writer: CacheWriter, group: TeacherGroup, arrays: Encoded) -> None:
    """Commit all units of a teacher."""
    for unit in range(len(arrays["lse"]) // group.unit_rows):
        rows = slice(unit * group.unit_rows, (unit + 1) * group.unit_rows)
        content = {name: array[rows] for name, array in arrays.items()}
        writer.write_unit(group, VIEW, unit, content, Conditions(canonical_batch=4))


def make_cache(
    path: Path | Location,
    encodings: dict[str, tuple[Encoding, NDArray[np.float32]]],
    rows: int,
    unreadable: tuple[int, ...] = (),
) -> Encoded:
    """Write and seal a whole cache; return its samples."""
    writer = start_cache(path, rows)
    samples = samples_of(rows, unreadable)
    write_samples(writer, samples)
    for name, (encoding, logits) in encodings.items():
        group = declare(writer, name, encoding)
        write_teacher(writer, group, encode(group, logits, samples))
    writer.seal("fingerprint", {name: {VIEW: 0.5} for name in encodings})
    return samples
