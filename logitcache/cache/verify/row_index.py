"""Comparison of the index of rows with the digest that the sealed card has of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from logitcache.cache.format.documents import parse_json
from logitcache.cache.format.ledger import read_revision
from logitcache.cache.format.names import CARD_DOCUMENTS, INDEX, sha256
from logitcache.cache.read.diagnose import Cause, Fault
from logitcache.cache.store.base import MAX_DOCUMENT_BYTES
from logitcache.errors import CacheDamaged

if TYPE_CHECKING:
    from logitcache.cache.format.manifest import Manifest
    from logitcache.cache.store.base import Location

__all__ = ["index_faults", "sealed_index_digest"]

_CROISSANT = CARD_DOCUMENTS[2]
_MOST_INDEX_BYTES = 2**40
_NEXT = "logitcache card writes it again"


def index_faults(location: Location, manifest: Manifest) -> list[Fault]:
    """Return the fault of an index of rows that is missing or not the one of the card.

    Nothing where there is no index, or where the document that has its digest is damaged, which is
    a fault of its own.
    """
    digest = sealed_index_digest(location, manifest)
    if digest is None:
        return []
    found = location.digest(INDEX, most=_MOST_INDEX_BYTES)
    if found is None:
        return [Fault(Cause.MISSING, f"{_CROISSANT} names it; {_NEXT}", INDEX)]
    if found[1] != digest:
        got = f"sha256 {found[1]} instead of {digest} ({_CROISSANT}); {_NEXT}"
        return [Fault(Cause.FOREIGN, got, INDEX)]
    return []


def sealed_index_digest(location: Location, manifest: Manifest) -> str | None:
    """Return the sha256 of the index in the sealed card; None where it has none."""
    if manifest.revision is None:
        return None
    try:
        sealed = read_revision(location, manifest.revision).metadata.get(_CROISSANT)
        content = location.read(_CROISSANT, most=MAX_DOCUMENT_BYTES)
        if sealed is None or content is None or sha256(content) != sealed:
            return None
        document = parse_json(content, _CROISSANT)
    except CacheDamaged:
        return None
    entries = document.get("distribution")
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict) and entry.get("contentUrl") == INDEX:
            return str(entry.get("sha256"))
    return None
