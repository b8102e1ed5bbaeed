"""The place that a cache is copied to: what it may hold before, and what of a revision it has."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from logitcache.cache.format.documents import parse_json
from logitcache.cache.format.ledger import (
    Ledger,
    Revision,
    is_intact,
    manifest_digest,
    parse_ledger,
    read_copies,
    read_revision,
)
from logitcache.cache.format.manifest import (
    Manifest,
    RevisionPointer,
    parse_manifest,
    read_manifest,
)
from logitcache.cache.format.names import (
    FORMAT,
    canonical_json,
    commit_key,
    commit_prefix,
    revision_key,
    sha256,
)
from logitcache.cache.format.view_requirements import with_views
from logitcache.cache.read.metadata_check import has_grown
from logitcache.errors import CacheDamaged, CacheError
from logitcache.share.snapshot import Snapshot, root_document

if TYPE_CHECKING:
    from logitcache.cache.format.ledger import Commit, StoredArray
    from logitcache.cache.store.base import Location

__all__ = ["MARKER", "Destination"]

MARKER = "transfer.json"
"""Document at a place that is receiving its first revision; removed once the root is written."""


class Destination:
    """A place that receives a revision.

    Args:
        location: The place: empty, a copy of an earlier revision, or what an interrupted copy of a
            cache has left.
        snapshot: The revision that it is to receive.

    Attributes:
        manifest: Its manifest; None before its first revision.

    Raises:
        CacheError: It holds anything else.
    """

    def __init__(self, location: Location, snapshot: Snapshot) -> None:
        self.location = location
        self.manifest: Manifest | None = None
        self._revision: Revision | None = None
        self._resumed = False
        if location.size("zarr.json") is not None:
            self.manifest = read_manifest(location)
            self._revision = self._check(self.manifest, snapshot)
        elif location.size(MARKER) is not None:
            self._resumed = True
        elif not location.is_empty():
            raise CacheError(
                "the destination is neither a cache nor empty",
                where=location,
                hint="choose another destination, or remove what is in it",
            )

    def start(self, snapshot: Snapshot) -> None:
        """Mark a place without a root, so that an interrupted transfer can be resumed."""
        if self.manifest is None:
            pointer = snapshot.pointer.model_dump()
            self.location.write(MARKER, canonical_json({"format": FORMAT, "revision": pointer}))

    def declare_views(self, snapshot: Snapshot) -> None:
        """Add the views of the new revision to the root, which still names the old one.

        Readers refuse groups that list other views than the root, and the groups are written first.
        """
        if self.manifest is not None and snapshot.pointer != self.manifest.revision:
            declared = _with_views(self.manifest, snapshot)
            if declared != self.manifest:
                self.location.write("zarr.json", root_document(declared))

    def present_units(self, name: str, ledger: Ledger) -> set[int]:
        """Return the units of a view that are whole here.

        A commit is written after its shards, so an equal commit means that they are complete. In a
        folder the sizes of the files are compared as well.

        Args:
            name: ``<group>/<view>``.
            ledger: Its commits.
        """
        known = self._sealed(name, ledger)
        if self._resumed or self.manifest is not None:
            known |= self._committed(ledger, known)
        return {unit for unit in known if self._has_files(ledger.commits[unit])}

    def has_shard(self, stored: StoredArray) -> bool:
        """Return whether a shard without a commit is here, which an interrupted copy has left."""
        if not self._resumed and self.manifest is None:
            return False
        return self.location.size(stored.key) == stored.bytes and is_intact(self.location, stored)

    def has_document(self, key: str, content: bytes) -> bool:
        """Return whether a document is here already."""
        if not self._resumed and self.manifest is None:
            return False
        try:
            return self.location.digest(key, most=len(content)) == (len(content), sha256(content))
        except CacheDamaged:  # it is longer
            return False

    def _sealed(self, name: str, ledger: Ledger) -> set[int]:
        """Return the units that the current revision of this place has, with equal commits."""
        pointer = self._revision.ledgers.get(name) if self._revision else None
        if pointer is None:
            return set()
        try:
            ours = parse_ledger(self.location, pointer).commits
        except CacheDamaged:  # it is copied again
            return set()
        return {unit for unit, commit in ledger.commits.items() if ours.get(unit) == commit}

    def _committed(self, ledger: Ledger, known: set[int]) -> set[int]:
        """Return further units with an equal commit, which an interrupted copy has left."""
        names = set(self.location.names(commit_prefix(ledger.group, ledger.view)))
        units = [unit for unit in ledger.commits if unit not in known and f"{unit}.json" in names]

        def is_equal(unit: int) -> bool:
            content = self.location.read(commit_key(ledger.group, ledger.view, unit))
            return content == canonical_json(ledger.commits[unit].to_json())

        with ThreadPoolExecutor(self.location.in_flight, thread_name_prefix="commits") as pool:
            equal = pool.map(is_equal, units)
            return {unit for unit, same in zip(units, equal, strict=True) if same}

    def _has_files(self, commit: Commit) -> bool:
        """Return whether the files of a unit have their sizes; not asked of a distant store."""
        if self.location.is_distant:
            return True
        return all(self.location.size(s.key) == s.bytes for s in commit.arrays.values())

    def _check(self, manifest: Manifest, snapshot: Snapshot) -> Revision:
        """Return the current revision, after which the one to be received may come."""
        pointer = manifest.revision
        if pointer is None:
            what, hint = "the destination holds an unfinished cache", "choose another destination"
            raise CacheError(what, where=self.location, hint=hint)
        revision = read_revision(self.location, pointer)
        if not self._is_sealed(manifest, revision, snapshot):
            raise CacheError(
                "the destination has been extended since its revision was sealed",
                where=self.location,
                got="teachers, views or images that are not sealed",
                hint="finish that run, or choose another destination",
            )
        if pointer == snapshot.pointer:
            return revision
        if pointer.number >= snapshot.pointer.number or not _is_ancestor(
            pointer, revision, snapshot
        ):
            raise CacheError(
                "the destination holds a revision that the source is not a continuation of",
                where=self.location,
                expected=f"a revision before {snapshot.pointer}",
                got=pointer,
                hint="choose another destination; logitcache inspect shows what each of them holds",
            )
        self._check_documents(revision, snapshot)
        return revision

    def _is_sealed(self, manifest: Manifest, revision: Revision, snapshot: Snapshot) -> bool:
        """Return whether a root is the sealed one, or has only views of the new revision besides.

        An interrupted update has left the latter.
        """
        if manifest_digest(manifest) == revision.manifest_sha256:
            return True
        copies = read_copies(self.location, revision)
        if copies is None:
            return False
        sealed = parse_manifest(copies.manifest, str(self.location))
        return manifest_digest(_with_views(sealed, snapshot)) == manifest_digest(manifest)

    def _check_documents(self, revision: Revision, snapshot: Snapshot) -> None:
        """Refuse documents that readers of the current revision would take for damage."""
        for key in revision.metadata.keys() & snapshot.documents.keys():
            ours, theirs = self.location.read(key), snapshot.documents[key]
            if ours is None or ours == theirs:
                continue
            if not has_grown(parse_json(ours, key), parse_json(theirs, key)):
                raise CacheError(
                    "the destination holds another part of the cache",
                    where=f"{self.location}/{key}",
                    hint="choose another destination, or the views and teachers it was made with",
                )


def _with_views(manifest: Manifest, snapshot: Snapshot) -> Manifest:
    """Return a manifest with the views of the new revision besides its own."""
    return with_views(manifest, {**snapshot.manifest.views, **manifest.views})


def _is_ancestor(pointer: RevisionPointer, revision: Revision, snapshot: Snapshot) -> bool:
    """Return whether a revision, or the one that it is a part of, is one of the source's."""
    if pointer.sha256 in snapshot.revision.parents:  # also where the source no longer has it
        return True
    content = snapshot.location.read(revision_key(pointer.number))
    if content is None:
        return False
    return sha256(content) in {pointer.sha256, *revision.parents[:1]}
