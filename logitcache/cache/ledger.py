"""What is committed: a commit per unit, a ledger per view of a group, a revision over all ledgers.

A commit is written last, so its existence means that its unit is whole. Sealing gathers commits
into ledgers: one object tells a reader everything about a view, and an array's shape tells nothing.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from logitcache.cache.format import (
    FORMAT,
    canonical_json,
    commit_key,
    commit_prefix,
    ledger_key,
    revision_key,
    sha256,
)
from logitcache.errors import CacheDamaged

if TYPE_CHECKING:
    from collections.abc import Iterable

    from logitcache.cache.location import LocalLocation
    from logitcache.cache.manifest import Manifest, RevisionPointer

__all__ = [
    "Commit",
    "Ledger",
    "LedgerPointer",
    "Revision",
    "StoredArray",
    "committed_units",
    "read_commits",
    "read_ledger",
    "read_revision",
    "write_commit",
    "write_ledger",
    "write_revision",
]


@dataclass(frozen=True)
class StoredArray:
    """One array's shard of one unit.

    Attributes:
        key: Where the object lies.
        bytes: Its size.
        sha256: Of its bytes.
        content_sha256: Of the decoded rows, whatever the codecs.
    """

    key: str
    bytes: int
    sha256: str
    content_sha256: str


@dataclass(frozen=True)
class Commit:
    """One unit of one group that is whole; no time, host or process: equal work, equal bytes.

    Attributes:
        group: Path of the group.
        view: Id of the view, ``-`` for the samples.
        unit: Number of the unit.
        rows: First row, and one past the last.
        arrays: By path of the array.
        canonical_batch: Images of one forward, 0 where nothing was forwarded.
        precision: Of the forward.
        threads: Of the forward; more of them may round differently.
        versions: Libraries and processor.
    """

    group: str
    view: str
    unit: int
    rows: tuple[int, int]
    arrays: dict[str, StoredArray]
    canonical_batch: int = 0
    precision: str = ""
    threads: int = 0
    versions: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the commit as JSON values."""
        return {"format": FORMAT, **asdict(self), "rows": list(self.rows)}


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
    """Where a ledger lies, its digest, and how many units it names."""

    key: str
    sha256: str
    units: int


@dataclass(frozen=True)
class Revision:
    """What a seal vouches for.

    Attributes:
        number: Counted from 1.
        segments: (start, rows) of each segment that is covered.
        ledgers: By ``<group>/<view>``.
        metadata: sha256 of every ``zarr.json`` below the root, by key.
        manifest_sha256: Of the manifest without its pointer to the revision.
    """

    number: int
    segments: tuple[tuple[int, int], ...]
    ledgers: dict[str, LedgerPointer]
    metadata: dict[str, str]
    manifest_sha256: str

    def to_json(self) -> dict[str, Any]:
        """Return the revision as JSON values."""
        return {
            "format": FORMAT,
            **asdict(self),
            "segments": [list(segment) for segment in self.segments],
        }

    @property
    def rows_end(self) -> int:
        """One past the last row that is covered."""
        return max((start + rows for start, rows in self.segments), default=0)


def write_commit(location: LocalLocation, commit: Commit) -> None:
    """Write a commit; from here on its unit exists."""
    key = commit_key(commit.group, commit.view, commit.unit)
    location.write(key, canonical_json(commit.to_json()))


def committed_units(location: LocalLocation, group: str, view: str) -> set[int]:
    """Return the numbers of the units that are committed, by name alone."""
    names = location.names(commit_prefix(group, view))
    return {int(name.removesuffix(".json")) for name in names if name[:-5].isdecimal()}


def read_commits(
    location: LocalLocation, group: str, view: str, units: Iterable[int]
) -> dict[int, Commit]:
    """Read the commits of some units; those without one are left out."""
    commits = {}
    for unit in units:
        key = commit_key(group, view, unit)
        content = location.read(key)
        if content is not None:
            commits[unit] = _parse_commit(_parse_json(content, f"{location}/{key}"), key)
    return commits


def write_ledger(location: LocalLocation, ledger: Ledger, revision: int) -> LedgerPointer:
    """Write a ledger and return its pointer."""
    key = ledger_key(ledger.group, ledger.view, revision)
    content = canonical_json(ledger.to_json())
    location.write(key, content)
    return LedgerPointer(key, sha256(content), len(ledger.commits))


def read_ledger(location: LocalLocation, pointer: LedgerPointer) -> Ledger:
    """Read a ledger.

    Raises:
        CacheDamaged: It is missing or not the one that was sealed.
    """
    values = _read_checked(location, pointer.key, pointer.sha256)
    commits = [_parse_commit(commit, pointer.key) for commit in values["commits"]]
    return Ledger(values["group"], values["view"], {commit.unit: commit for commit in commits})


def write_revision(location: LocalLocation, revision: Revision) -> str:
    """Write a revision and return its sha256."""
    content = canonical_json(revision.to_json())
    location.write(revision_key(revision.number), content)
    return sha256(content)


def read_revision(location: LocalLocation, pointer: RevisionPointer) -> Revision:
    """Read the revision that the manifest points at.

    Raises:
        CacheDamaged: It is missing or not the one that was sealed.
    """
    values = _read_checked(location, revision_key(pointer.number), pointer.sha256)
    return Revision(
        number=values["number"],
        segments=tuple((start, rows) for start, rows in values["segments"]),
        ledgers={path: LedgerPointer(**ledger) for path, ledger in values["ledgers"].items()},
        metadata=values["metadata"],
        manifest_sha256=values["manifest_sha256"],
    )


def manifest_digest(manifest: Manifest) -> str:
    """Return the sha256 of a manifest without its pointer to a revision."""
    return sha256(canonical_json({**manifest.to_json(), "revision": None}))


def _read_checked(location: LocalLocation, key: str, digest: str) -> dict[str, Any]:
    content = location.read(key)
    if content is None or sha256(content) != digest:
        raise CacheDamaged(
            "a sealed object is missing" if content is None else "a sealed object has changed",
            where=f"{location}/{key}",
            expected=f"sha256 {digest}",
            got=None if content is None else f"sha256 {sha256(content)}",
        )
    return _parse_json(content, f"{location}/{key}")


def _parse_json(content: bytes, where: str) -> dict[str, Any]:
    try:
        values = json.loads(content)
    except ValueError as error:
        raise CacheDamaged("not JSON", where=where, got=error) from None
    if not isinstance(values, dict):
        raise CacheDamaged("not a JSON object", where=where)
    return values


def _parse_commit(values: dict[str, Any], where: str) -> Commit:
    try:
        return Commit(
            group=values["group"],
            view=values["view"],
            unit=values["unit"],
            rows=(values["rows"][0], values["rows"][1]),
            arrays={path: StoredArray(**array) for path, array in values["arrays"].items()},
            canonical_batch=values["canonical_batch"],
            precision=values["precision"],
            threads=values["threads"],
            versions=values["versions"],
        )
    except (KeyError, TypeError, IndexError) as error:
        raise CacheDamaged("malformed commit", where=where, got=repr(error)) from None
