"""One revision of a cache with all documents that it determines, whole or as a part.

Documents come from the second copies of the revision, so a run that extends the cache at the same
time changes nothing of what is read here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from logitcache.cache.format.data_arrays import DATA
from logitcache.cache.format.documents import numbers, parse_json
from logitcache.cache.format.envelope import signature_key
from logitcache.cache.format.groups import group_names, read_group, row_groups
from logitcache.cache.format.ledger import (
    Copies,
    Revision,
    manifest_digest,
    parse_ledger,
    read_copies,
    read_revision,
)
from logitcache.cache.format.manifest import (
    Manifest,
    RevisionPointer,
    check_revision,
    parse_manifest,
    read_manifest,
)
from logitcache.cache.format.names import (
    ATTRIBUTE,
    CARD_DOCUMENTS,
    INDEX,
    TEACHERS,
    WITHDRAWN,
    canonical_json,
    copies_key,
    is_withdrawal,
    revision_key,
    sha256,
    teacher_group,
)
from logitcache.cache.read.exclusions import read_withdrawn, withdrawal_keys
from logitcache.cache.write.drop import manifest_without, numbered_views, revision_without
from logitcache.errors import CacheDamaged, CacheUnsealed, UsageError, nearest

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from logitcache.cache.format.groups import Group
    from logitcache.cache.format.ledger import Ledger
    from logitcache.cache.store.base import Location

__all__ = ["Snapshot", "part_of", "read_snapshot", "root_document"]

_MOST_INDEX_BYTES = 2**30
_OF_THE_WHOLE = CARD_DOCUMENTS[1:]  # a part keeps the facts that people have stated alone
_GROUPS = tuple(f"{name}/" for name in sorted({*DATA, TEACHERS}))
_NUMBERED_DOCUMENTS = ("probes/", f"{WITHDRAWN}/")


@dataclass(frozen=True)
class Snapshot:
    """One revision of a cache.

    Attributes:
        location: The cache that its shards and ledgers are read from.
        manifest: The manifest as it was sealed, which points at the revision.
        revision: The revision.
        documents: Every document that the revision lists besides ledgers, and every exclusion, by
            key.
        content: The document of the revision.
        copies: The document of second copies; None in old revisions.
        root: The root ``zarr.json``.
        signatures: Signatures of the revision; None if it is not signed.
    """

    location: Location
    manifest: Manifest
    revision: Revision
    documents: dict[str, bytes]
    content: bytes
    copies: bytes | None
    root: bytes
    signatures: bytes | None = None

    @property
    def pointer(self) -> RevisionPointer:
        """Number and sha256 of the revision."""
        assert self.manifest.revision is not None
        return self.manifest.revision

    def index(self) -> bytes | None:
        """Read the index of rows; None unless it is the one that the card has the digest of."""
        card = self.documents.get(CARD_DOCUMENTS[-1])
        content = None if card is None else self.location.read(INDEX, most=_MOST_INDEX_BYTES)
        if card is None or content is None or sha256(content).encode() not in card:
            return None
        return content

    def ledgers(self) -> Iterator[tuple[str, Ledger]]:
        """Yield ``<group>/<view>`` and ledger, one of them in memory at a time.

        Raises:
            CacheDamaged: A ledger is not the one that was sealed, or describes other objects than
                its name implies.
        """
        for name, pointer in self.revision.ledgers.items():
            ledger = parse_ledger(self.location, pointer)
            where = f"{self.location}/{pointer.key}"
            if f"{ledger.group}/{ledger.view}" != name:
                got = f"{ledger.group}/{ledger.view}"
                what = "a ledger belongs to another view"
                raise CacheDamaged(what, where=where, expected=name, got=got)
            for commit in ledger.commits.values():
                own = (commit.group, commit.view) == (ledger.group, ledger.view)
                for path, stored in commit.arrays.items():
                    inside = path == ledger.group or path.startswith(f"{ledger.group}/")
                    if not (own and inside and stored.key.startswith(f"{path}/c/")):
                        what = "a commit names an object outside of its group"
                        raise CacheDamaged(what, where=where, got=stored.key[:200])
            yield name, ledger


def read_snapshot(location: Location, wanted: str | None = None) -> Snapshot:
    """Read a revision and its documents.

    Args:
        location: The cache.
        wanted: sha256 of a revision, or at least 12 digits of it; the current one by default.

    Raises:
        CacheUnsealed: The cache was never sealed.
        CacheDamaged: There is no such revision, or a document is not the one that was sealed.
    """
    manifest = read_manifest(location)
    if manifest.revision is None:
        raise CacheUnsealed(
            "this cache is not finished: it has no sealed revision",
            where=location,
            hint="run the same precompute command again; logitcache status shows what is missing",
        )
    pointer = _pointer(location, manifest, wanted)
    revision = read_revision(location, pointer)
    _check_keys(location, revision)
    sealed, texts = _sealed_documents(location, manifest, revision)
    sealed = sealed.changed(revision=pointer)
    later = read_revision(location, manifest.revision).metadata.keys() - revision.metadata.keys()
    documents = {key: texts[key] for key in revision.metadata} | _exclusions(location, later)
    # as they are stored: a later version may have written fields that this one does not know
    content = location.read(revision_key(pointer.number)) or b""
    second = location.read(copies_key(pointer.number)) if revision.copies_sha256 else None
    is_root = manifest.revision == pointer and manifest_digest(manifest) == revision.manifest_sha256
    root = location.read("zarr.json") if is_root else None
    return Snapshot(
        location,
        sealed,
        revision,
        documents,
        content,
        second,
        root or root_document(sealed),
        location.read(signature_key(pointer.number)),
    )


def part_of(whole: Snapshot, views: int | None, teachers: Collection[str]) -> Snapshot:
    """Return a revision of some views and teachers of a cache, as dropping the others makes it.

    Equal arguments give equal bytes. The part has the number of the whole and names it as its
    parent.

    Args:
        whole: The revision.
        views: Number of views to keep, the first ones; all by default.
        teachers: Names of the teachers to keep; all if empty.

    Raises:
        UsageError: There is no such teacher or there are not as many views.
    """
    before, where = whole.manifest, whole.location
    names = {name: f"{teacher_group(name)}/zarr.json" for name in group_names(before)}
    groups = {name: read_group(where, name, whole.documents[key]) for name, key in names.items()}
    gone, dropped = _left_out(whole, groups, views, teachers)
    if not gone and not dropped:
        return whole
    manifest = manifest_without(before, groups, where, gone, set(), dropped)
    absent = set(groups) - set(group_names(manifest))
    revision = revision_without(whole.revision, absent, dropped, manifest)
    listed = {
        key: _without_slots(whole.documents[key], dropped)
        for key in revision.metadata
        if key not in _OF_THE_WHOLE
    }
    manifest, revision, content, second = _sealed_part(whole, manifest, revision, listed)
    exclusions = {
        key: document
        for key, document in whole.documents.items()
        if is_withdrawal(key) and key not in revision.metadata
    }
    documents = listed | exclusions
    return Snapshot(where, manifest, revision, documents, content, second, root_document(manifest))


def _sealed_part(
    whole: Snapshot, manifest: Manifest, revision: Revision, documents: Mapping[str, bytes]
) -> tuple[Manifest, Revision, bytes, bytes]:
    """Return manifest and revision of a part, the document of the revision, and the copies."""
    texts = {key: document.decode() for key, document in documents.items()}
    copies = Copies(manifest.changed(revision=None).to_json(), texts)
    second = canonical_json(copies.to_json())
    revision = replace(
        revision,
        metadata={key: sha256(document) for key, document in documents.items()},
        manifest_sha256=manifest_digest(manifest),
        copies_sha256=sha256(second),
        parents=(whole.pointer.sha256,),
    )
    content = canonical_json(revision.to_json())
    pointer = RevisionPointer(number=revision.number, sha256=sha256(content))
    return manifest.changed(revision=pointer), revision, content, second


def _left_out(
    whole: Snapshot, groups: Mapping[str, Group], views: int | None, teachers: Collection[str]
) -> tuple[set[str], set[str]]:
    """Return the names of the teachers and the ids of the views that a part does not have."""
    manifest, where = whole.manifest, whole.location
    for name in teachers:
        if name not in manifest.teachers:
            hint = nearest(name, manifest.teachers)
            raise UsageError(f"no teacher {name!r} in this cache", where=where, hint=hint)
    gone = set(manifest.teachers) - set(teachers) if teachers else set()
    left = {name: g for name, g in row_groups(groups).items() if g.teacher not in gone}
    seen = {view for group in left.values() for view in group.view_ids}
    numbered = [view for view in numbered_views(manifest, groups) if view in manifest.views]
    kept = [view for view in numbered if view in seen]
    if views is not None and not 1 <= views <= len(kept):
        expected = f"1 to {len(kept)}"
        raise UsageError("no such number of views", where="--views", expected=expected, got=views)
    if views is None and not gone:
        return set(), set()
    return gone, set(numbered) - set(kept[:views])


def _pointer(location: Location, manifest: Manifest, wanted: str | None) -> RevisionPointer:
    """Return the pointer to the revision that is wanted, which may be an earlier one."""
    current = manifest.revision
    assert current is not None
    try:
        check_revision(manifest, wanted, location)
    except CacheDamaged:
        assert wanted is not None
        for number in reversed(numbers(location, "revisions")):
            content = location.read(revision_key(number)) if number < current.number else None
            if content is not None and sha256(content).startswith(wanted.lower()):
                return RevisionPointer(number=number, sha256=sha256(content))
        raise
    return current


def _sealed_documents(
    location: Location, manifest: Manifest, revision: Revision
) -> tuple[Manifest, dict[str, bytes]]:
    """Return manifest and documents as they were sealed; old revisions have no second copies."""
    copies = read_copies(location, revision)
    if copies is None:
        sealed = manifest
        texts = {key: location.read(key) or b"" for key in revision.metadata}
    else:
        sealed = parse_manifest(copies.manifest, f"{location}/{copies_key(revision.number)}")
        texts = {key: text.encode() for key, text in copies.documents.items()}
    for key, digest in {**revision.metadata, "zarr.json": revision.manifest_sha256}.items():
        found = manifest_digest(sealed) if key == "zarr.json" else sha256(texts.get(key, b""))
        if found != digest:
            what = "a document has changed since it was sealed"
            raise CacheDamaged(what, where=f"{location}/{key}", got=f"sha256 {found}")
    return sealed, texts


def _exclusions(location: Location, later: Collection[str]) -> dict[str, bytes]:
    """Return the documents of exclusions but for later ones.

    Those that no revision names are among them: readers apply them, and 0.1 has named none.
    """
    read_withdrawn(location)  # compares each with the sha256 in it
    keys = [key for key in withdrawal_keys(location) if key not in later]
    return {key: location.read(key) or b"" for key in keys}


def _check_keys(location: Location, revision: Revision) -> None:
    """Refuse keys at which a revision must not have a document or ledger."""
    for key in revision.metadata:
        of_a_group = key.startswith(_GROUPS) and key.endswith("/zarr.json")
        if not (of_a_group or key in CARD_DOCUMENTS or key.startswith(_NUMBERED_DOCUMENTS)):
            what = "a revision lists a document that is not part of a cache"
            raise CacheDamaged(what, where=location, got=key[:200])
    for pointer in revision.ledgers.values():
        if not pointer.key.startswith("ledger/"):
            what = "a revision lists a ledger with another key than the format has"
            raise CacheDamaged(what, where=location, got=pointer.key[:200])


def _without_slots(document: bytes, dropped: set[str]) -> bytes:
    """Return the metadata of a group with empty slots in the place of some views."""
    values = parse_json(document, "zarr.json")
    attributes = values.get("attributes") or {}
    own = attributes.get(ATTRIBUTE) or {}
    slots = own.get("view_ids")
    if not slots or not dropped.intersection(slots):
        return document
    emptied = {**own, "view_ids": ["" if slot in dropped else slot for slot in slots]}
    changed = {**values, "attributes": {**attributes, ATTRIBUTE: emptied}}
    return json.dumps(changed, indent=2).encode()


def root_document(manifest: Manifest) -> bytes:
    """Return the root ``zarr.json`` of a manifest."""
    values = {
        "attributes": {ATTRIBUTE: manifest.to_json()},
        "zarr_format": 3,
        "node_type": "group",
    }
    return json.dumps(values, indent=2).encode()
