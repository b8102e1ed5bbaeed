"""Declaration of teachers in a cache: their logits, or, without logits, their record alone.

A teacher that is declared already is compared field by field.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from logitcache.cache.format.groups import TeacherGroup
from logitcache.cache.format.manifest import TeacherRecord
from logitcache.cache.format.names import HEADLESS, canonical_json, group_unit_rows, sha256
from logitcache.errors import UsageError
from logitcache.precompute.environment import versions
from logitcache.precompute.plan.encodings import check_declared

if TYPE_CHECKING:
    from logitcache.cache.write.writer import CacheWriter
    from logitcache.data.source import Source
    from logitcache.encoding.kinds import Encoding
    from logitcache.precompute.config import PrecomputeConfig
    from logitcache.teachers.member import Member

__all__ = [
    "check_classes",
    "declare_headless",
    "declare_teacher",
]


def check_classes(name: str, member: Member, source: Source) -> None:
    """Raise an error if a teacher has another number of classes than the data, without names."""
    names = source.class_names
    if member.class_names is not None or not member.has_logits:
        return
    if names and len(names) != member.num_classes:
        raise UsageError(
            f"teacher {name!r} and the data have different numbers of classes",
            where=source.description,
            expected=f"{len(names)} classes",
            got=f"{member.num_classes} classes",
            hint="set class_map to the index of the teacher's output for each class of the data "
            f"(--set teachers.{name}.class_map=[...]), or class_map=own to store all classes of "
            "the teacher and map them in training",
        )


def declare_headless(writer: CacheWriter, name: str, member: Member, batch: int) -> list[str]:
    """Declare a teacher without logits, or check that a declared one is the same; return notes."""
    record = writer.manifest.teachers.get(name)
    if record is not None:
        check_declared(writer, name, member, None)
        return _other_versions(name, record)
    record = TeacherRecord(
        lock=member.lock,
        canonical_batch=min(batch, writer.manifest.unit_rows),
        source=member.source,
        versions=versions(),
    )
    manifest = writer.manifest.changed(teachers={**writer.manifest.teachers, name: record})
    writer.publish(manifest.requiring(HEADLESS))
    return []


def declare_teacher(
    config: PrecomputeConfig,
    writer: CacheWriter,
    name: str,
    member: Member,
    encoding: Encoding,
    view_ids: list[str],
    batch: int,
) -> list[str]:
    """Declare a teacher, or check a declared one; return notes for the user."""
    record = writer.manifest.teachers.get(name)
    if record is not None:
        check_declared(writer, name, member, encoding)
        writer.extend_group(name, view_ids)
        return _other_versions(name, record)
    data = writer.manifest.data
    # the number of a label says nothing about the outputs of a teacher with other classes
    one_label = bool(data.class_names) and data.label_width is None and member.class_names is None
    wanted = {
        "lse": config.encoding.lse and member.head == "softmax",
        "label_logp": config.encoding.label_log_probs and one_label and member.head == "softmax",
    }
    optional = [array for array, kept in wanted.items() if kept]
    row_bytes = sum(spec.row_bytes for spec in encoding.specs().values())
    unit_rows = group_unit_rows(writer.manifest.unit_rows, row_bytes)
    group = TeacherGroup(
        teacher=name,
        num_classes=member.num_classes,
        encoding=encoding,
        optional=tuple(optional),
        unit_rows=unit_rows,
        slots=tuple(view_ids),
        lock_sha256=sha256(canonical_json(member.lock)),
        class_names_sha256=sha256(canonical_json(list(writer.manifest.data.class_names))),
        class_names=member.class_names,
    )
    writer.add_teacher(
        TeacherRecord(
            lock=member.lock,
            canonical_batch=min(batch, unit_rows),
            source=member.source,
            versions=versions(),
        ),
        group,
    )
    top_k = config.encoding.top_k
    if top_k is not None and top_k >= member.num_classes:
        return [
            f"teacher {name}: top {top_k} includes all {member.num_classes} classes; stored dense"
        ]
    return []


def _other_versions(name: str, record: TeacherRecord) -> list[str]:
    """Return a note on library versions that differ from the recorded ones, if any do."""
    now = versions()
    changed = [
        f"{library} {before} -> {now.get(library)}"
        for library, before in sorted(record.versions.items())
        if now.get(library) != before
    ]
    if not changed:
        return []
    return [f"teacher {name}: library versions changed since its first unit: {', '.join(changed)}"]
