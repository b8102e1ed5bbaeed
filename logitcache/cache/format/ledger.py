"""Commits of units, ledgers of views, and revisions over all ledgers.

A commit is written last, so its existence means that its unit is whole. Sealing gathers commits
into ledgers: one object has everything a reader needs of a view; shapes of arrays prove nothing.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, FiniteFloat, TypeAdapter

from logitcache.cache.format.documents import MAX_VALUES, parse_json, validated
from logitcache.cache.format.manifest import MAX_UNITS, read_manifest
from logitcache.cache.format.names import (
    FORMAT,
    canonical_json,
    commit_key,
    commit_prefix,
    copies_key,
    ledger_key,
    revision_key,
    sha256,
)
from logitcache.cache.store.base import MAX_DOCUMENT_BYTES
from logitcache.errors import CacheDamaged, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from logitcache.cache.format.manifest import Manifest, RevisionPointer
    from logitcache.cache.store.base import Location

__all__ = [
    "Commit",
    "Copies",
    "Ledger",
    "LedgerPointer",
    "Revision",
    "StoredArray",
    "committed_units",
    "is_intact",
    "manifest_digest",
    "parse_commit",
    "parse_ledger",
    "parse_revision",
    "read_commits",
    "read_copies",
    "read_revision",
    "sealed_bytes",
    "write_commit",
    "write_copies",
    "write_ledger",
    "write_revision",
]

_Count = Annotated[int, Field(ge=0, le=2**63 - 1)]
_Text = Annotated[str, Field(max_length=4096)]
_UNIT_NAME = re.compile(r"(0|[1-9][0-9]{0,18})\.json", re.ASCII)
# a commit of seven arrays takes about 3.5 kB and 60 values, and a ledger has MAX_UNITS at most
_MAX_LEDGER_BYTES, _MAX_LEDGER_VALUES = 2**27, 2**21


@dataclass(frozen=True)
class StoredArray:
    """One array's shard of one unit.

    Attributes:
        key: Key of the object.
        bytes: Its size.
        sha256: SHA-256 of its bytes.
        content_sha256: SHA-256 of the decoded rows, which does not depend on the codecs.
    """

    key: _Text
    bytes: _Count
    sha256: _Text
    content_sha256: _Text


@dataclass(frozen=True)
class Commit:
    """Record of one complete unit; without time, host or process, so equal work is equal bytes.

    Attributes:
        group: Path of the group.
        view: Id of the view, ``-`` for the samples.
        unit: Number of the unit.
        rows: First row, and one past the last.
        arrays: Stored shards by path of the array.
        canonical_batch: Images of one forward pass; 0 without one.
        precision: Data type of the forward pass.
        threads: Threads of the forward pass, whose number may change the rounding.
        versions: Versions of the libraries, and the processor.
        measured: Sums of the encoding losses over a sample of its rows, by name; empty in most.
    """

    group: _Text
    view: _Text
    unit: _Count
    rows: tuple[_Count, _Count]
    arrays: dict[str, StoredArray]
    canonical_batch: _Count = 0
    precision: str = ""
    threads: _Count = 0
    versions: dict[str, str] = field(default_factory=dict)
    measured: Annotated[dict[str, FiniteFloat], Field(max_length=64)] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the commit as JSON values."""
        values = {"format": FORMAT, **asdict(self), "rows": list(self.rows)}
        if not self.measured:
            del values["measured"]
        return values


@dataclass(frozen=True)
class Ledger:
    """All the commits of one view of a group, by unit."""

    group: str
    view: str
    commits: dict[int, Commit]

    def to_json(self) -> dict[str, Any]:
        """Return the ledger as JSON values."""
        commits = [self.commits[unit].to_json() for unit in sorted(self.commits)]
        return {"format": FORMAT, "group": self.group, "view": self.view, "commits": commits}


@dataclass(frozen=True)
class LedgerPointer:
    """Key and digest of a ledger, and the number of its units."""

    key: _Text
    sha256: _Text
    units: _Count


@dataclass(frozen=True)
class Revision:
    """Contents of a revision.

    Attributes:
        number: Counted from 1.
        segments: (start, rows) of each segment that is covered.
        ledgers: Pointers to the ledgers by ``<group>/<view>``.
        metadata: SHA-256 of every ``zarr.json`` below the root, of the view fingerprints and of the
            withdrawals, by key.
        manifest_sha256: SHA-256 of the manifest without its pointer to the revision.
        copies_sha256: SHA-256 of the second copies of these documents; None in old revisions.
        parents: SHA-256 of the revisions that it was made from: the one before it, or the sources
            of a part; empty in the first revision and in old ones.
    """

    number: _Count
    segments: tuple[tuple[_Count, _Count], ...]
    ledgers: dict[str, LedgerPointer]
    metadata: dict[str, str]
    manifest_sha256: _Text
    copies_sha256: str | None = None
    parents: Annotated[tuple[_Text, ...], Field(max_length=4096)] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the revision as JSON values."""
        values = {
            "format": FORMAT,
            **asdict(self),
            "segments": [list(segment) for segment in self.segments],
            "parents": list(self.parents),
        }
        if not self.parents:
            del values["parents"]
        return values

    @property
    def rows_end(self) -> int:
        """One past the last row that is covered."""
        return max((start + rows for start, rows in self.segments), default=0)


@dataclass(frozen=True)
class Copies:
    """Second copies of the documents that cannot be computed again.

    Attributes:
        manifest: The root manifest as it was sealed, its pointer to a revision left out.
        documents: Every ``zarr.json`` below the root, and the probes, by key.
    """

    manifest: dict[str, Any]
    documents: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """Return the copies as JSON values."""
        return {"format": FORMAT, **asdict(self)}


_COMMIT = TypeAdapter(Commit)
_REVISION = TypeAdapter(Revision)
_COPIES = TypeAdapter(Copies)


def write_commit(location: Location, commit: Commit) -> None:
    """Write a commit; from here on its unit exists.

    Where the store reports that another run has committed the unit, the commit that describes the
    stored shards is kept: two machines may compute different bytes.

    Raises:
        StorageError: Neither commit describes the shards; the unit is missing again.
    """
    key = commit_key(commit.group, commit.view, commit.unit)
    content = canonical_json(commit.to_json())
    if location.write_new(key, content) or location.read(key) == content:
        return
    theirs = read_commits(location, commit.group, commit.view, [commit.unit]).get(commit.unit)
    if theirs is not None and _is_stored(location, theirs):
        return
    if _is_stored(location, commit):
        location.write(key, content)
        return
    # the shards are a mixture of both runs: without a commit the unit is computed again
    location.delete(key)
    raise StorageError(
        "two runs wrote the same unit at the same time with different outputs",
        where=f"{location}/{key}",
        hint="stop one of them and run the other again; all other units are intact",
    )


def _is_stored(location: Location, commit: Commit) -> bool:
    return all(is_intact(location, stored) for stored in commit.arrays.values())


def is_intact(location: Location, stored: StoredArray) -> bool:
    """Return whether a shard is there and is the one that was committed."""
    try:
        found = location.digest(stored.key, most=stored.bytes)
    except CacheDamaged:  # it is longer, or not a file
        return False
    return found == (stored.bytes, stored.sha256)


def committed_units(location: Location, group: str, view: str) -> set[int]:
    """Return the numbers of the units that are committed, by name alone.

    Where names cannot be listed, those that are sealed.
    """
    if not location.lists:
        return set(_sealed_commits(location, group, view))
    names = location.names(commit_prefix(group, view))
    return {int(name[:-5]) for name in names if _UNIT_NAME.fullmatch(name)}


def sealed_bytes(location: Location, group: str, views: Iterable[str]) -> int:
    """Return the bytes of the sealed shards of a group."""
    return sum(
        stored.bytes
        for view in views
        for commit in _sealed_commits(location, group, view).values()
        for stored in commit.arrays.values()
    )


def _sealed_commits(location: Location, group: str, view: str) -> dict[int, Commit]:
    """Return what the current revision covers, empty if there is none of this view."""
    pointer = read_manifest(location).revision
    ledgers = read_revision(location, pointer).ledgers if pointer else {}
    found = ledgers.get(f"{group}/{view}")
    return {} if found is None else parse_ledger(location, found).commits


def read_commits(
    location: Location, group: str, view: str, units: Iterable[int]
) -> dict[int, Commit]:
    """Read the commits of some units; those without one are left out."""
    commits = {}
    for unit in units:
        key = commit_key(group, view, unit)
        content = location.read(key)
        if content is not None:
            commits[unit] = parse_commit(parse_json(content, f"{location}/{key}"), key)
    return commits


def write_ledger(location: Location, ledger: Ledger, revision: int) -> LedgerPointer:
    """Write a ledger and return its pointer."""
    key = ledger_key(ledger.group, ledger.view, revision)
    content = canonical_json(ledger.to_json())
    location.write(key, content)
    return LedgerPointer(key, sha256(content), len(ledger.commits))


def parse_ledger(location: Location, pointer: LedgerPointer) -> Ledger:
    """Read a ledger on its own.

    Raises:
        CacheDamaged: It is missing or not the one that was sealed.
    """
    if pointer.units > MAX_UNITS:
        raise CacheDamaged(
            "a ledger has more units than the format allows",
            where=f"{location}/{pointer.key}",
            expected=f"at most {MAX_UNITS}",
            got=pointer.units,
        )
    values = _read_checked(
        location,
        pointer.key,
        pointer.sha256,
        most=_MAX_LEDGER_BYTES,
        most_values=_MAX_LEDGER_VALUES,
    )
    found = values.get("commits")
    commits = [parse_commit(c, pointer.key) for c in (found if isinstance(found, list) else ())]
    if len(commits) != pointer.units:
        raise CacheDamaged(
            "a ledger has another number of units than its revision records",
            where=f"{location}/{pointer.key}",
            expected=f"{pointer.units} units",
            got=f"{len(commits)} units",
        )
    group, view = str(values.get("group"))[:4096], str(values.get("view"))[:4096]
    return Ledger(group, view, {commit.unit: commit for commit in commits})


def write_revision(location: Location, revision: Revision) -> str:
    """Write a revision and return its sha256."""
    content = canonical_json(revision.to_json())
    location.write(revision_key(revision.number), content)
    return sha256(content)


def read_revision(location: Location, pointer: RevisionPointer) -> Revision:
    """Read the revision that the manifest points at.

    Raises:
        CacheDamaged: It is missing or not the one that was sealed.
    """
    key = revision_key(pointer.number)
    values = _read_checked(location, key, pointer.sha256)
    return parse_revision(values, f"{location}/{key}")


def parse_revision(values: object, where: str) -> Revision:
    """Read a revision.

    Raises:
        CacheDamaged: It is malformed.
    """
    return validated(_REVISION, values, where, "a revision is malformed")


def write_copies(location: Location, number: int, copies: Copies) -> str:
    """Write the second copies of a revision and return their sha256."""
    content = canonical_json(copies.to_json())
    location.write(copies_key(number), content)
    return sha256(content)


def read_copies(location: Location, revision: Revision) -> Copies | None:
    """Read the second copies of a revision, None where it has none.

    Raises:
        CacheDamaged: They are missing or not those that were sealed.
    """
    if revision.copies_sha256 is None:
        return None
    key = copies_key(revision.number)
    values = _read_checked(location, key, revision.copies_sha256)
    return validated(_COPIES, values, f"{location}/{key}", "second copies are malformed")


def manifest_digest(manifest: Manifest) -> str:
    """Return the sha256 of a manifest without its pointer to a revision."""
    return sha256(canonical_json({**manifest.to_json(), "revision": None}))


def _read_checked(
    location: Location,
    key: str,
    digest: str,
    *,
    most: int = MAX_DOCUMENT_BYTES,
    most_values: int = MAX_VALUES,
) -> dict[str, Any]:
    content = location.read(key, most=most)
    # compared before it is parsed: the parser gets no bytes that were not sealed
    if content is None or sha256(content) != digest:
        raise CacheDamaged(
            "a sealed document is missing" if content is None else "a sealed document has changed",
            where=f"{location}/{key}",
            expected=f"sha256 {digest}",
            got=None if content is None else f"sha256 {sha256(content)}",
        )
    return parse_json(content, f"{location}/{key}", most_values=most_values)


def parse_commit(values: object, where: str) -> Commit:
    """Read one commit.

    Raises:
        CacheDamaged: It is malformed.
    """
    return validated(_COMMIT, values, where, "a commit is malformed")
