"""Restoring of documents from their second copies, and of ledgers from commits.

Nothing here needs an image or a teacher. Whatever is restored is restored to the very bytes that
were sealed, and are used only if their digest is the sealed one.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from logitcache.cache.format.arrays import create_array, resize, write_group
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
    NO_VIEW,
    SAMPLES,
    VIEWS,
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
from logitcache.cache.format.partners import mixed_views, partner_attributes, partner_placement
from logitcache.cache.format.samples import sample_attributes, sample_placement
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

__all__ = ["mend_documents", "recovered_manifest", "rewrite_unsealed", "write_root"]


def recovered_manifest(location: Location) -> Manifest | None:
    """Return the manifest of the newest revision whose copies hold, None if there is none."""
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
            continue  # an older one may do
        pointer = RevisionPointer(number=number, sha256=sha256(content or b""))
        return manifest.changed(revision=pointer)
    return None


def mend_documents(location: Location, faults: Iterable[Fault]) -> list[Fault]:
    """Restore manifest, metadata, ledgers, commits and copies; return the faults that are gone."""
    found = list(faults)
    mended: list[Fault] = []
    for cause, mend in (
        (Cause.MANIFEST, _mend_manifest),
        (Cause.ROLLED_BACK, _mend_manifest),
        (Cause.REVISION, _mend_revision),
        (Cause.METADATA, _mend_metadata),
        (Cause.WITHDRAWAL, _mend_metadata),
        (Cause.LEDGER, _mend_ledger),
        (Cause.COMMIT, _mend_commit),
    ):
        wanted = [fault for fault in found if fault.cause == cause and not fault.recompute]
        mended += [fault for fault in wanted if mend(location, fault)]
    return mended


def _mend_manifest(location: Location, fault: Fault) -> bool:
    """Write the sealed manifest; what was declared since is kept where it can be read."""
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
    """Write the root document as it is, without asking zarr to read the old one first."""
    root = {"zarr_format": 3, "node_type": "group"}
    document = {"attributes": {ATTRIBUTE: manifest.to_json()}, **root}
    location.write("zarr.json", json.dumps(document, indent=2).encode())


def _mend_revision(location: Location, fault: Fault) -> bool:
    """Write a revision or its copies again from what they describe, if the digests agree."""
    manifest = read_manifest(location)
    if manifest.revision is None:
        return False
    if fault.key == revision_key(manifest.revision.number):
        content = canonical_json(_described(location, manifest).to_json())
        return _restored(location, fault.key, content, manifest.revision.sha256)
    try:
        revision = read_revision(location, manifest.revision)
    except CacheDamaged:
        return False
    content = canonical_json(_copies_of(location, manifest, revision.metadata).to_json())
    return _restored(location, fault.key, content, revision.copies_sha256)


def _described(location: Location, manifest: Manifest) -> Revision:
    """Put together the revision that a manifest and its ledgers, commits and metadata imply."""
    assert manifest.revision is not None
    number = manifest.revision.number
    groups = [read_group(location, name) for name in group_names(manifest)]
    mixed = [view for view in mixed_views(manifest) if committed_units(location, VIEWS, view)]
    paths = [f"{SAMPLES}/{NO_VIEW}", *(f"{VIEWS}/{view}" for view in mixed)]
    paths += [f"{group.path}/{view}" for group in groups for view in group.ledger_views]
    keys = metadata_keys(location, mixed, groups)
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


def _copies_of(location: Location, manifest: Manifest, keys: Iterable[str]) -> Copies:
    documents = {key: (location.read(key) or b"").decode(errors="replace") for key in keys}
    return Copies(manifest.changed(revision=None).to_json(), documents)


def _mend_metadata(location: Location, fault: Fault) -> bool:
    """Write a ``zarr.json`` as it was sealed, as long as the arrays have become since."""
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
        return True  # of a group
    axis = 0 if path.startswith((f"{SAMPLES}/", f"{VIEWS}/")) else 1
    if shape[axis] < manifest.capacity:
        resize(RecordingStore(location), path, (*shape[:axis], manifest.capacity))
    return True


def _mend_ledger(location: Location, fault: Fault) -> bool:
    """Gather the commits of a ledger once more."""
    pointer = _pointer(location, fault.group, fault.view)
    if pointer is None:
        return False
    units = sorted(committed_units(location, fault.group, fault.view))[: pointer.units]
    try:
        commits = read_commits(location, fault.group, fault.view, units)
    except CacheDamaged:
        return False
    content = canonical_json(Ledger(fault.group, fault.view, commits).to_json())
    return _restored(location, pointer.key, content, pointer.sha256)


def _mend_commit(location: Location, fault: Fault) -> bool:
    """Write a commit as its ledger has it."""
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


def _restored(location: Location, key: str, content: bytes, digest: str | None) -> bool:
    """Write an object, but only if it is the one that was sealed."""
    if sha256(content) != digest:
        return False
    location.write(key, content)
    return True


def rewrite_unsealed(writer: CacheWriter) -> list[str]:
    """Write metadata again that were damaged before they were sealed, as far as that is possible.

    A server may lose a write, and a disk may leave an empty file. Metadata of arrays follow from
    the manifest and the attributes of their group; a group without a committed unit is taken out
    of the manifest, so that it is declared once more.

    Args:
        writer: The cache, opened to be extended.

    Returns:
        What was written again, for the user.

    Raises:
        CacheDamaged: The attributes of a group are lost, and units of it are committed.
    """
    location, pointer = writer.location, writer.manifest.revision
    sealed = read_revision(location, pointer).metadata if pointer else {}
    written = _forget_damaged_groups(writer, sealed)
    manifest = writer.manifest
    rows = (manifest.capacity,)
    wanted: list[tuple[Placement, dict[str, Any], tuple[int, ...]]] = [
        (sample_placement(manifest.unit_rows), sample_attributes(manifest), rows)
    ]
    for view_id in mixed_views(manifest):
        placement = partner_placement(view_id, manifest.unit_rows)
        wanted.append((placement, partner_attributes(manifest), rows))
    for group in writer.groups().values():
        leading = group.leading_shape(manifest)
        wanted += [(group.placement(v), group.to_json(), leading) for v in group.ledger_views[-1:]]
    for placement, attributes, leading in wanted:
        path = placement.holder
        if f"{path}/zarr.json" not in sealed and not _is_group(location, path):
            write_group(location, path, attributes)
            written.append(f"{path}/zarr.json")
        written += _rewrite_arrays(writer, placement, leading, sealed)
    return [f"written again, because it was damaged before it was sealed: {k}" for k in written]


def _forget_damaged_groups(writer: CacheWriter, sealed: Collection[str]) -> list[str]:
    """Take groups with damaged attributes out of the manifest, if nothing of them is committed."""
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
    """Write the metadata of arrays again that cannot be used; their shards stay."""
    location, manifest = writer.location, writer.manifest
    written = []
    for name, spec in placement.specs.items():
        path, key = placement.path(name), f"{placement.path(name)}/zarr.json"
        try:
            placement.layout(location, name, manifest.capacity)
        except CacheDamaged:
            if key in sealed:
                continue  # logitcache repair restores it
            location.delete(key)
            create_array(RecordingStore(location), path, spec, leading, placement.unit_rows)
            written.append(key)
    return written


def _is_group(location: Location, path: str) -> bool:
    try:
        parse_group(location.read(f"{path}/zarr.json") or b"", path)
    except CacheDamaged:
        return False
    return True
