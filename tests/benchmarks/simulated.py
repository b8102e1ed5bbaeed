"""Caches of any size whose ledgers and metadata are real and whose shards are mostly absent.

Everything is declared, committed and sealed by the package's own writer. One unit of one view is
written; the commits of all others are that one's, under their own keys and digests.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from logitcache.cache.format.groups import TeacherGroup
from logitcache.cache.format.ledger import Commit, StoredArray, read_commits, write_commit
from logitcache.cache.format.manifest import DataRecord, Segment, TeacherRecord
from logitcache.cache.format.names import SAMPLES, canonical_json, default_unit_rows, sha256
from logitcache.cache.format.samples import sample_placement
from logitcache.cache.store.open import locate
from logitcache.cache.write.unit_commit import Conditions
from logitcache.cache.write.writer import CacheWriter
from logitcache.views.spec import ViewsConfig
from tests.benchmarks.logits import CLASSES
from tests.benchmarks.reading import ENCODING, repeated

if TYPE_CHECKING:
    from pathlib import Path

    from logitcache.cache.format.placement import Placement
    from logitcache.encoding.kinds import Encoding

__all__ = ["simulate"]

_LOCK = {"model": "none"}
_CONDITIONS = Conditions(
    canonical_batch=256,
    precision="float32",
    threads=16,
    versions=dict.fromkeys(("logitcache", "torch", "timm", "Pillow", "zarr", "numpy"), "2.15.0"),
)


def simulate(path: Path, rows: int, views: int, encoding: Encoding = ENCODING) -> CacheWriter:
    """Write a sealed cache of one teacher and some random views, and return its writer."""
    unit_rows = default_unit_rows(rows)
    recipes = [ViewsConfig(count=views).random_view(draw + 1) for draw in range(views)]
    writer = CacheWriter.create(
        locate(path),
        unit_rows=unit_rows,
        segment=Segment(start=0, rows=rows),
        data=DataRecord(
            description="simulated", class_names=tuple(f"class {c}" for c in range(CLASSES))
        ),
        versions=_CONDITIONS.versions,
    )
    writer.add_views({view.id: view.to_json() for view in recipes})
    group = TeacherGroup(
        teacher="teacher",
        num_classes=CLASSES,
        encoding=encoding,
        optional=("lse", "label_logp"),
        unit_rows=unit_rows,
        slots=tuple(view.id for view in recipes),
        lock_sha256=sha256(canonical_json(_LOCK)),
        class_names_sha256=sha256(canonical_json(list(writer.manifest.data.class_names))),
    )
    writer.add_teacher(TeacherRecord(lock=_LOCK, canonical_batch=256, source="simulated"), group)
    writer.write_unit(group, group.view_ids[0], 0, repeated(unit_rows, encoding), _CONDITIONS)
    _commit_the_rest(writer, group)
    accuracy = dict.fromkeys(group.view_ids, 0.76)
    writer.seal(sha256(b"images"), {group.name: accuracy})
    return writer


def _commit_the_rest(writer: CacheWriter, group: TeacherGroup) -> None:
    """Write the commits of all units that are absent."""
    real = read_commits(writer.location, group.path, group.view_ids[0], [0])[0]
    units = sorted(writer.needed_units(group.unit_rows))
    for slot, view in enumerate(group.view_ids):
        for unit in units:
            if (slot, unit) != (0, 0):
                write_commit(writer.location, _moved(real, group.placement(view), unit))
    placement = sample_placement(writer.manifest)
    names = [placement.path(name) for name in placement.specs]
    known = next(iter(real.arrays.values()))
    samples = replace(real, group=SAMPLES, arrays=dict.fromkeys(names, known))
    for unit in units:
        write_commit(writer.location, _moved(samples, placement, unit))


def _moved(commit: Commit, placement: Placement, unit: int) -> Commit:
    """Return a commit as another unit would have it."""
    stored = {}
    for name in placement.specs:
        known = commit.arrays[placement.path(name)]
        key = placement.shard_key(name, unit)
        digest = sha256(key.encode())
        size = min(known.bytes, placement.max_bytes(name))
        stored[placement.path(name)] = StoredArray(key, size, digest, digest)
    start = unit * placement.unit_rows
    rows = (start, start + placement.unit_rows)
    return replace(commit, view=placement.view, unit=unit, rows=rows, arrays=stored)
