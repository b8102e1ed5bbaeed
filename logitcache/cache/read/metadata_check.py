"""Comparison of metadata with the sealed copy, which they may extend but not contradict.

Between two seals a cache may be extended: arrays and lists of views become longer, and the manifest
lists more. All other differences are damage, and are reported field by field.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from logitcache.cache.format.documents import parse_json
from logitcache.cache.format.ledger import manifest_digest, read_copies
from logitcache.cache.format.manifest import parse_manifest
from logitcache.cache.format.names import ATTRIBUTE, is_withdrawal, sha256
from logitcache.cache.read.diagnose import Cause, Fault
from logitcache.errors import CacheDamaged, CacheError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from logitcache.cache.format.ledger import Copies, Revision
    from logitcache.cache.format.manifest import Manifest
    from logitcache.cache.store.base import Location

__all__ = ["check_segments", "has_grown", "manifest_fault", "metadata_faults"]


def check_segments(location: Location, manifest: Manifest, revision: Revision) -> None:
    """Compare the rows of a revision with those of the manifest, which may have more.

    Raises:
        CacheDamaged: They are other ones, or there are none.
    """
    segments = tuple((segment.start, segment.rows) for segment in manifest.segments)
    if not revision.segments or segments[: len(revision.segments)] != revision.segments:
        raise CacheDamaged(
            "the revision has other rows than the manifest",
            where=location,
            expected=f"segments {str(revision.segments)[:200]}",
            got=str(segments)[:200],
        )


def manifest_fault(location: Location, manifest: Manifest, revision: Revision) -> Fault | None:
    """Compare the root manifest with the sealed one."""
    if manifest_digest(manifest) == revision.manifest_sha256:
        return None
    copies = _copies(location, revision)
    if copies is None:
        detail = "it differs from the sealed manifest, and its second copy cannot be read"
        return Fault(Cause.MANIFEST, detail, "zarr.json")
    try:
        sealed = parse_manifest(copies.manifest, "").to_json()
    except CacheError as error:
        detail = f"it has changed, and its second copy is malformed: {error.what}: {error.got}"
        return Fault(Cause.MANIFEST, detail, "zarr.json")
    edited = _changed_fields(sealed, manifest.to_json())
    if not edited:
        return None
    return Fault(Cause.MANIFEST, f"changed since it was sealed: {'; '.join(edited)}", "zarr.json")


def metadata_faults(
    location: Location, revision: Revision, keys: Iterable[str] | None = None
) -> list[Fault]:
    """Compare every ``zarr.json`` below the root and the probes, or some, with the sealed ones."""
    wanted = revision.metadata if keys is None else {key: revision.metadata[key] for key in keys}
    found = (_document_fault(location, revision, key, digest) for key, digest in wanted.items())
    return [fault for fault in found if fault is not None]


def _document_fault(location: Location, revision: Revision, key: str, digest: str) -> Fault | None:
    content = location.read(key)
    group = key.removesuffix("/zarr.json")
    cause = Cause.WITHDRAWAL if is_withdrawal(key) else Cause.METADATA
    if content is None:
        return Fault(cause, "no such object", key, group)
    if sha256(content) == digest:
        return None
    copies = _copies(location, revision)
    sealed = copies.documents.get(key) if copies else None
    if sealed is not None and has_grown(_parsed(sealed), _parsed(content)):
        return None
    return Fault(cause, "it differs from the sealed document", key, group)


def _copies(location: Location, revision: Revision) -> Copies | None:
    """Return the second copies; None where they are damaged, which is a fault of its own."""
    try:
        return read_copies(location, revision)
    except CacheDamaged:
        return None


def _parsed(text: str | bytes) -> Any:
    try:
        return parse_json(text.encode() if isinstance(text, str) else text, "")
    except CacheDamaged:
        return None


def has_grown(sealed: Any, now: Any) -> bool:
    """Return whether a document differs only by a longer shape, or by added or dropped views."""
    try:
        if sealed["node_type"] == "array":
            same = {**now, "shape": sealed["shape"]} == sealed
            pairs = zip(now["shape"], sealed["shape"], strict=True)
            return same and all(new >= old for new, old in pairs)
        ours, theirs = sealed["attributes"][ATTRIBUTE], now["attributes"][ATTRIBUTE]
        views = ours["view_ids"]
        same = {**theirs, "view_ids": views} == ours
        kept = zip(theirs["view_ids"][: len(views)], views, strict=True)
        return same and all(new in (old, "") for new, old in kept)
    except (KeyError, TypeError, ValueError):
        return False


def _changed_fields(sealed: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return the fields of a manifest that differ by more than additions."""
    changed = []
    for field, before in sealed.items():
        after: Any = now.get(field)
        if field == "revision" or after == before:
            continue
        if field == "segments" and after[: len(before)] == before:
            continue
        if field in {"views", "teachers"}:
            changed += [f"{field}.{n}" for n in before if after.get(n) != before[n]]
            continue
        changed.append(f"{field} {_short(before)} -> {_short(after)}")
    return changed


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
