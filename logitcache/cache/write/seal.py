"""Sealing: one revision that covers every ledger, every document and the manifest.

Everything that a revision lists is written before it, and the root points at it last. Documents
that cannot be computed again from images and teachers are written twice: the copies of a revision
contain the manifest, every ``zarr.json``, the view fingerprints and the withdrawals.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from logitcache.cache.format.fingerprints import fingerprint_keys
from logitcache.cache.format.ledger import (
    Copies,
    Ledger,
    LedgerPointer,
    Revision,
    manifest_digest,
    read_commits,
    read_revision,
    write_copies,
    write_ledger,
    write_revision,
)
from logitcache.cache.format.manifest import RevisionPointer
from logitcache.cache.format.names import CARD_DOCUMENTS, copies_key, revision_key, sha256
from logitcache.cache.format.placement import parents_of
from logitcache.cache.read.exclusions import withdrawal_keys
from logitcache.errors import CacheDamaged

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from logitcache.cache.format.groups import Group
    from logitcache.cache.format.manifest import Manifest
    from logitcache.cache.format.placement import Placement
    from logitcache.cache.store.base import Location

__all__ = ["metadata_keys", "write_changed", "write_reseal", "write_seal"]


def metadata_keys(
    location: Location, data: Iterable[Placement], groups: Iterable[Group]
) -> list[str]:
    """Return the keys of the documents of a revision besides its ledgers.

    They are every ``zarr.json`` below the root, the view fingerprints, the withdrawals, and the
    card of a cache that has one.

    Args:
        location: The cache.
        data: Placements of samples, images and mixing partners.
        groups: All its groups.
    """
    paths = []
    for placement in data:
        paths += [placement.holder, *(placement.path(name) for name in placement.specs)]
    for group in groups:
        paths += [group.path, *(f"{group.path}/{name}" for name in group.specs())]
    parents = {parent for path in paths for parent in parents_of(path)} - set(paths)
    # not every version of zarr also writes the parents of a group
    paths += [path for path in sorted(parents) if location.size(f"{path}/zarr.json") is not None]
    documents = [f"{path}/zarr.json" for path in paths]
    documents += [*fingerprint_keys(location), *withdrawal_keys(location)]
    if location.size(CARD_DOCUMENTS[0]) is None:  # a README.md without it is a file of the user
        return documents
    return documents + [key for key in CARD_DOCUMENTS if location.size(key) is not None]


def write_seal(
    location: Location,
    manifest: Manifest,
    units: Mapping[tuple[str, str], Collection[int]],
    metadata: Collection[str],
    rewritten: Collection[tuple[str, str]] = (),
) -> RevisionPointer:
    """Write ledgers, copies and a revision; nothing where the last one has the same content.

    Args:
        location: The cache.
        manifest: The manifest to be sealed.
        units: The units of every (group, view), all of them committed.
        metadata: Keys of :func:`metadata_keys`.
        rewritten: (group, view) with commits that were written again.

    Returns:
        The pointer for the root.
    """
    previous = read_revision(location, manifest.revision) if manifest.revision else None
    number = previous.number + 1 if previous else 1
    documents = {key: _document(location, key) for key in sorted(metadata)}
    copies = Copies(manifest.changed(revision=None).to_json(), documents)
    # ledgers and copies are written before the revision with their digests
    revision = Revision(
        number=number,
        segments=tuple((segment.start, segment.rows) for segment in manifest.segments),
        ledgers=_write_ledgers(location, previous, number, units, rewritten),
        metadata={key: sha256(text.encode()) for key, text in documents.items()},
        manifest_sha256=manifest_digest(manifest),
        copies_sha256=write_copies(location, number, copies),
        parents=_parents(manifest),
    )
    if previous is not None and _same_content(previous, revision):
        assert manifest.revision is not None
        # also those of a run that was killed before the root pointed at its revision
        location.delete(copies_key(number))
        location.delete(revision_key(number))
        return manifest.revision
    return RevisionPointer(number=number, sha256=write_revision(location, revision))


def write_reseal(
    location: Location, manifest: Manifest, rewritten: Collection[tuple[str, str]]
) -> RevisionPointer:
    """Write a revision like the last one, but for the ledgers of some (group, view)."""
    assert manifest.revision is not None
    previous = read_revision(location, manifest.revision)
    number = previous.number + 1
    ledgers = dict(previous.ledgers)
    for group, view in rewritten:
        units = range(ledgers[f"{group}/{view}"].units)
        ledgers[f"{group}/{view}"] = _gathered(location, group, view, units, number)
    return write_changed(location, manifest, replace(previous, ledgers=ledgers))


def write_changed(location: Location, manifest: Manifest, revision: Revision) -> RevisionPointer:
    """Write a revision with other ledgers than the last one, or fewer documents.

    Args:
        location: The cache.
        manifest: The manifest to be sealed; points at the last revision.
        revision: The last revision, with its ledgers and documents changed.

    Returns:
        The pointer for the root.
    """
    assert manifest.revision is not None
    number = manifest.revision.number + 1
    keys = {*revision.metadata, *withdrawal_keys(location)}
    documents = {key: _document(location, key) for key in sorted(keys)}
    copies = Copies(manifest.changed(revision=None).to_json(), documents)
    revision = replace(
        revision,
        number=number,
        metadata={key: sha256(text.encode()) for key, text in documents.items()},
        manifest_sha256=manifest_digest(manifest),
        copies_sha256=write_copies(location, number, copies),
        parents=_parents(manifest),
    )
    return RevisionPointer(number=number, sha256=write_revision(location, revision))


def _parents(manifest: Manifest) -> tuple[str, ...]:
    """Return the sha256 of the revisions that the next one is made from."""
    if manifest.revision is not None:
        return (manifest.revision.sha256,)
    parts = manifest.derived_from.parts if manifest.derived_from else ()
    return tuple(part.revision.sha256 for part in parts)


def _same_content(previous: Revision, revision: Revision) -> bool:
    return replace(previous, number=revision.number, parents=revision.parents) == revision


def _write_ledgers(
    location: Location,
    previous: Revision | None,
    number: int,
    units: Mapping[tuple[str, str], Collection[int]],
    rewritten: Collection[tuple[str, str]],
) -> dict[str, LedgerPointer]:
    """Write the ledgers that changed; keep the pointers of the others."""
    ledgers = {}
    for (group, view), wanted in units.items():
        known = previous.ledgers.get(f"{group}/{view}") if previous else None
        if known is not None and known.units == len(wanted) and (group, view) not in rewritten:
            ledgers[f"{group}/{view}"] = known
            continue
        ledgers[f"{group}/{view}"] = _gathered(location, group, view, wanted, number)
    return ledgers


def _gathered(
    location: Location, group: str, view: str, units: Collection[int], number: int
) -> LedgerPointer:
    """Gather the commits of one view into a ledger."""
    commits = read_commits(location, group, view, units)
    if len(commits) != len(units):
        raise CacheDamaged(
            "the cache cannot be sealed: a commit is missing",
            where=f"{location}, {group}, view {view}",
            expected=f"{len(units)} units",
            got=f"{len(commits)} units",
            hint="logitcache repair computes the unit again",
        )
    return write_ledger(location, Ledger(group, view, commits), number)


def _document(location: Location, key: str) -> str:
    content = location.read(key)
    if content is None:
        raise CacheDamaged(
            "the cache cannot be sealed: a document is missing",
            where=f"{location}/{key}",
            hint="logitcache repair writes it again",
        )
    return content.decode()
