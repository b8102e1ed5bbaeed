"""Where probes are kept: one JSON document for each time that views or segments were added.

What is in a probe is the business of :mod:`logitcache.views.probes`; here it is bytes that a
revision vouches for.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from logitcache.cache.format import FORMAT, canonical_json, sha256
from logitcache.cache.location import numbers
from logitcache.errors import CacheDamaged

if TYPE_CHECKING:
    from collections.abc import Mapping

    from logitcache.cache.location import Location

__all__ = ["probe_keys", "probed", "read_probes", "write_probes"]

_PREFIX = "probes"


def probe_keys(location: Location) -> list[str]:
    """Return where the documents lie, oldest first."""
    return [f"{_PREFIX}/{number}.json" for number in numbers(location, _PREFIX)]


def probed(location: Location) -> set[tuple[str, int]]:
    """Return the (view id, first row of a segment) that documents stand for, sealed or not."""
    documents = [json.loads(location.read(key) or b"{}") for key in probe_keys(location)]
    return {
        (view_id, start)
        for document in documents
        for view_id in document.get("views", ())
        for start in document.get("segments", ())
    }


def write_probes(location: Location, document: Mapping[str, Any]) -> None:
    """Add a document.

    Args:
        location: The cache.
        document: ``views`` and ``segments`` (first rows) the probes stand for, ``size``,
            ``versions``, and ``probes``.
    """
    key = f"{_PREFIX}/{len(probe_keys(location)) + 1}.json"
    location.write(key, canonical_json({"format": FORMAT, **document}))


def read_probes(location: Location, digests: Mapping[str, str]) -> list[dict[str, Any]]:
    """Read the documents that a revision vouches for, oldest first.

    Args:
        location: The cache.
        digests: sha256 by key, as the revision has them.

    Raises:
        CacheDamaged: One is missing or is not what was written.
    """
    documents = []
    sealed = [key for key in digests if key.startswith(f"{_PREFIX}/")]
    for key in sorted(sealed, key=lambda key: (len(key), key)):  # as they are numbered
        content = location.read(key)
        if content is None:
            raise CacheDamaged("probes are missing", where=f"{location}/{key}")
        if sha256(content) != digests[key]:
            raise CacheDamaged(
                "probes are not what was written", where=f"{location}/{key}", expected=digests[key]
            )
        documents.append(json.loads(content))
    return documents
