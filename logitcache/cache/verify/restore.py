"""Restoration of documents from their second copies, and of ledgers from commits.

No image or teacher is needed. A document is written only if its bytes have the sealed digest.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from logitcache.cache.format.arrays import create_array, resize, write_group
from logitcache.cache.format.data_arrays import VIEW_ARRAYS, data_placements
from logitcache.cache.format.documents import parse_group, parse_json
from logitcache.cache.format.groups import group_names, read_group
from logitcache.cache.format.ledger import (
    Copies,
    Ledger,
    LedgerPointer,
    Revision,
    committed_units,
    manifest_digest,
    parse_ledger,
    parse_revision,
    read_commits,
    read_copies,
    read_revision,
    write_commit,
)
from logitcache.cache.format.manifest import (
    Manifest,
    RevisionPointer,
    parse_manifest,
    read_manifest,
)
from logitcache.cache.format.names import (
    ATTRIBUTE,
    canonical_json,
    commit_prefix,
    copies_key,
    kind_of,
    ledger_key,
    revision_key,
    sha256,
    teacher_group,
    teacher_of,
)
from logitcache.cache.format.shards import parse_array
from logitcache.cache.read.diagnose import Cause, Fault
from logitcache.cache.store.zarr_store import RecordingStore
from logitcache.cache.write.seal import metadata_keys
from logitcache.errors import CacheDamaged, CacheError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from logitcache.cache.format.placement import Placement
    from logitcache.cache.store.base import Location
    from logitcache.cache.write.writer import CacheWriter

__all__ = ["recovered_manifest", "restore_documents", "rewrite_unsealed", "write_root"]


def recovered_manifest(location: Location) -> Manifest | None:
    """Return the manifest of the newest revision with intact copies; None if there is none."""
    numbers = {name.split(".")[0] for name in location.names("revisions")}
    for number in sorted((int(n) for n in numbers if n.isdecimal()), reverse=True):
        content = location.read(revision_key(number))
        try:
            revision = parse_revision(parse_json(content or b"", ""), "")
            copies = read_copies(location, revision)
            if copies is None or revision.number != number:
                continue
            manifest = parse_manifest(copies.manifest, "")
        except CacheError:
            continue  # an older one may be intact
        pointer = RevisionPointer(number=number, sha256=sha256(content or b""))
        return manifest.changed(revision=pointer)
    return None


def restore_documents(location: Location, faults: Iterable[Fault]) -> list[Fault]:
    """Restore manifest, metadata, ledgers, commits and copies; return the repaired faults."""
    found = list(faults)
    restored: list[Fault] = []
    # manifest before revision before the rest: each is restored by what the ones before it name
    for cause, restore in (
        (Cause.MANIFEST, _restore_manifest),
        (Cause.ROLLED_BACK, _restore_manifest),
        (Cause.REVISION, _restore_revision),
        (Cause.METADATA, _restore_metadata),
        (Cause.WITHDRAWAL, _restore_metadata),
        (Cause.LEDGER, _restore_ledger),
        (Cause.COMMIT, _restore_commit),
    ):
        wanted = [fault for fault in found if fault.cause == cause and not fault.recompute]
        restored += [fault for fault in wanted if restore(location, fault)]
    return restored


def _restore_manifest(location: Location, fault: Fault) -> bool:
    """Write the sealed manifest; later declarations are kept where they can be read."""
    del fault  # there is one manifest
    manifest = recovered_manifest(location)
    if manifest is None:
        return False
    try:
        now = read_manifest(location)
    except CacheError:
        now = manifest
    longer = now.segments[: len(manifest.segments)] == manifest.segments
    write_root(
        location,
        manifest.changed(
            views={**now.views, **manifest.views},
            teachers={**now.teachers, **manifest.teachers},
            segments=now.segments if longer else manifest.segments,
        ),
    )
    return True


def write_root(location: Location, manifest: Manifest) -> None:
    """Write the root document without zarr, which would read the old one first."""
    root = {"zarr_format": 3, "node_type": "group"}
    document = {"attributes": {ATTRIBUTE: manifest.to_json()}, **root}
    location.write("zarr.json", json.dumps(document, indent=2).encode())


def _restore_revision(location: Location, fault: Fault) -> bool:
    """Write a revision or its copies again from the documents they list, if the digests agree."""
    manifest = read_manifest(location)
    if manifest.revision is None:
        return False
    if fault.key == revision_key(manifest.revision.number):
        content = canonical_json(_described(location, manifest).to_json())
        return _write_if_sealed(location, fault.key, content, manifest.revision.sha256)
    try:
        revision = read_revision(location, manifest.revision)
    except CacheDamaged:
        return False
    # bytes that are not UTF-8 are damage, and change the digest as well
    documents = {
        key: (location.read(key) or b"").decode(errors="replace") for key in revision.metadata
    }
    copies = Copies(manifest.changed(revision=None).to_json(), documents)
    content = canonical_json(copies.to_json())
    return _write_if_sealed(location, fault.key, content, revision.copies_sha256)


def _described(location: Location, manifest: Manifest) -> Revision:
    """Return the revision that the manifest, ledgers, commits and metadata imply."""
    assert manifest.revision is not None
    number = manifest.revision.number
    groups = [read_group(location, name) for name in group_names(manifest)]
    data = [
        placement
        for placement in data_placements(manifest)
        if placement.group not in VIEW_ARRAYS  # of views that no teacher sees nothing is committed
        or committed_units(location, placement.group, placement.view)
    ]
    paths = [placement.ledger for placement in data]
    paths += [f"{group.path}/{view}" for group in groups for view in group.ledger_views]
    keys = metadata_keys(location, data, groups)
    copies = location.read(copies_key(number))
    return Revision(
        number=number,
        segments=tuple((segment.start, segment.rows) for segment in manifest.segments),
        ledgers={path: p for path in paths if (p := _newest_ledger(location, path, number))},
        metadata={key: sha256(location.read(key) or b"") for key in keys},
        manifest_sha256=manifest_digest(manifest),
        copies_sha256=sha256(copies) if copies is not None else None,
    )


def _newest_ledger(location: Location, path: str, number: int) -> LedgerPointer | None:
    group, _, view = path.rpartition("/")
    for revision in range(number, 0, -1):
        key = ledger_key(group, view, revision)
        content = location.read(key)
        if content is not None:
            found = parse_json(content, key).get("commits")
            units = len(found) if isinstance(found, list) else 0
            return LedgerPointer(key, sha256(content), units)
    return None


def _restore_metadata(location: Location, fault: Fault) -> bool:
    """Write a ``zarr.json`` as it was sealed, with the rows that were added since."""
    manifest = read_manifest(location)
    if manifest.revision is None:
        return False
    try:
        copies = read_copies(location, read_revision(location, manifest.revision))
    except CacheDamaged:
        return False
    document = copies.documents.get(fault.key) if copies else None
    if document is None:
        return False
    location.write(fault.key, document.encode())
    path = fault.key.removesuffix("/zarr.json")
    try:
        shape = parse_array(document.encode(), fault.key).shape
    except CacheDamaged:
        return True  # it is the metadata of a group
    data = {
        placement.path(name): placement.length(name, manifest.capacity)
        for placement in data_placements(manifest)
        for name in placement.specs
    }
    axis, length = (0, data[path]) if path in data else (1, manifest.capacity)
    if shape[axis] < length:
        resize(RecordingStore(location), path, (*shape[:axis], length))
    return True


def _restore_ledger(location: Location, fault: Fault) -> bool:
    """Write a ledger again from its commits."""
    pointer = _pointer(location, fault.group, fault.view)
    if pointer is None:
        return False
    units = sorted(committed_units(location, fault.group, fault.view))[: pointer.units]
    try:
        commits = read_commits(location, fault.group, fault.view, units)
    except CacheDamaged:
        return False
    content = canonical_json(Ledger(fault.group, fault.view, commits).to_json())
    return _write_if_sealed(location, pointer.key, content, pointer.sha256)


def _restore_commit(location: Location, fault: Fault) -> bool:
    """Write a commit again from its ledger."""
    pointer = _pointer(location, fault.group, fault.view)
    assert fault.unit is not None
    try:
        ledger = parse_ledger(location, pointer) if pointer else None
    except CacheDamaged:
        return False
    if ledger is None or fault.unit not in ledger.commits:
        return False
    write_commit(location, ledger.commits[fault.unit])
    return True


def _pointer(location: Location, group: str, view: str) -> LedgerPointer | None:
    manifest = read_manifest(location)
    try:
        revision = read_revision(location, manifest.revision) if manifest.revision else None
    except CacheDamaged:
        return None
    return revision.ledgers.get(f"{group}/{view}") if revision else None


def _write_if_sealed(location: Location, key: str, content: bytes, digest: str | None) -> bool:
    """Write an object if it has the sealed digest; return whether it has."""
    if sha256(content) != digest:
        return False
    location.write(key, content)
    return True


def rewrite_unsealed(writer: CacheWriter) -> list[str]:
    """Write metadata again that were damaged before they were sealed, where that is possible.

    A server may lose a write, and a disk may leave an empty file. Metadata of arrays follow from
    the manifest and the attributes of their group; a group without a committed unit is removed from
    the manifest, so that it is declared again.

    Args:
        writer: The cache, opened to be extended.

    Returns:
        A note for the user about each document that was written again.

    Raises:
        CacheDamaged: The attributes of a group are lost, and units of it are committed.
    """
    location, pointer = writer.location, writer.manifest.revision
    sealed = read_revision(location, pointer).metadata if pointer else {}
    written = _forget_damaged_groups(writer, sealed)
    manifest = writer.manifest
    wanted: list[tuple[Placement, dict[str, Any], tuple[int, ...]]] = [
        (placement, {"unit_rows": placement.unit_rows}, (manifest.capacity,))
        for placement in data_placements(manifest)
    ]
    for group in writer.groups().values():
        leading = group.leading_shape(manifest)
        wanted += [(group.placement(v), group.to_json(), leading) for v in group.ledger_views[-1:]]
    for placement, attributes, leading in wanted:
        path = placement.holder
        if f"{path}/zarr.json" not in sealed and not _is_group(location, path):
            write_group(location, path, attributes)
            written.append(f"{path}/zarr.json")
        written += _rewrite_arrays(writer, placement, leading, sealed)
    return [f"written again because it was damaged before the first seal: {k}" for k in written]


def _forget_damaged_groups(writer: CacheWriter, sealed: Collection[str]) -> list[str]:
    """Remove groups with damaged attributes from the manifest, if they have no committed unit."""
    location, teachers = writer.location, dict(writer.manifest.teachers)
    forgotten = []
    for name in group_names(writer.manifest):
        key = f"{teacher_group(name)}/zarr.json"
        try:
            read_group(location, name)
        except CacheDamaged:
            teacher, kind = teacher_of(name), kind_of(name)
            if key in sealed or teacher not in teachers:
                continue
            commits = commit_prefix(*teacher_group(name).rsplit("/", 1))
            if next(iter(location.keys(commits)), None) is not None:
                raise
            record = teachers.pop(teacher)
            if kind:  # the record lists the names of each kind in the field of that name
                others: tuple[str, ...] = getattr(record, kind)
                kept = tuple(other for other in others if other != name.rpartition("/")[2])
                teachers[teacher] = record.model_copy(update={kind: kept})
            forgotten.append(key)
    if forgotten:
        writer.publish(writer.manifest.changed(teachers=teachers))
    return forgotten


def _rewrite_arrays(
    writer: CacheWriter,
    placement: Placement,
    leading: tuple[int, ...],
    sealed: Collection[str],
) -> list[str]:
    """Write the unusable metadata of arrays again; their shards stay."""
    location, manifest = writer.location, writer.manifest
    written = []
    for name, spec in placement.specs.items():
        path, key = placement.path(name), f"{placement.path(name)}/zarr.json"
        try:
            placement.layout(location, name, manifest.capacity)
        except CacheDamaged:
            if key in sealed:
                continue  # logitcache repair restores it
            location.delete(key)  # zarr refuses to create an array over another one
            create_array(RecordingStore(location), path, spec, leading, placement.unit_rows)
            written.append(key)
    return written


def _is_group(location: Location, path: str) -> bool:
    try:
        parse_group(location.read(f"{path}/zarr.json") or b"", path)
    except CacheDamaged:
        return False
    return True
