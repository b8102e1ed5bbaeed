"""Documents of view fingerprints: one for each time that views or segments were added.

The fields of a fingerprint are those of :mod:`logitcache.views.fingerprints`; here they are bytes
that a revision covers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import BaseModel, Field, Strict, TypeAdapter

from logitcache.cache.format.documents import numbers, parse_json, validated
from logitcache.cache.format.names import FORMAT, canonical_json, sha256
from logitcache.errors import CacheDamaged
from logitcache.views.recipe import ViewId

if TYPE_CHECKING:
    from collections.abc import Mapping

    from logitcache.cache.store.base import Location

__all__ = [
    "Fingerprinted",
    "FingerprintsDocument",
    "fingerprint_keys",
    "probed",
    "read_fingerprints",
    "write_fingerprints",
]

_PREFIX = "probes"
_Text = Annotated[str, Field(max_length=256)]
_Row = Annotated[int, Strict(), Field(ge=0, le=2**40)]


class FingerprintsDocument(BaseModel):
    """Fingerprints that were written together.

    Attributes:
        views: Ids of the views that were rendered.
        segments: First rows of the segments that the rendered images belong to.
        versions: Libraries and processor that rendered them.
        probes: View fingerprints, as
            :meth:`logitcache.views.fingerprints.Fingerprint.from_json` reads them.
    """

    views: list[ViewId] = Field(max_length=65536)
    segments: list[_Row] = Field(max_length=65536)
    versions: dict[_Text, _Text] = Field(max_length=64)
    probes: list[dict[str, Any]] = Field(max_length=1024)


_DOCUMENT = TypeAdapter(FingerprintsDocument)


class Fingerprinted(NamedTuple):
    """The views and the segments that one document has fingerprints of."""

    views: frozenset[str]
    segments: frozenset[int]


def fingerprint_keys(location: Location) -> list[str]:
    """Return the keys of the documents, oldest first."""
    return [f"{_PREFIX}/{number}.json" for number in numbers(location, _PREFIX)]


def probed(location: Location) -> list[Fingerprinted]:
    """Return the views and segments of each document, sealed or not.

    Raises:
        CacheDamaged: One is malformed.
    """
    documents = (_parsed(location, key, location.read(key)) for key in fingerprint_keys(location))
    return [Fingerprinted(frozenset(d.views), frozenset(d.segments)) for d in documents]


def write_fingerprints(location: Location, document: Mapping[str, Any]) -> None:
    """Add a document.

    Args:
        location: The cache.
        document: ``views`` and ``segments`` (first rows) of the fingerprints, ``size``,
            ``versions``, and ``probes``.
    """
    key = f"{_PREFIX}/{len(fingerprint_keys(location)) + 1}.json"
    location.write(key, canonical_json({"format": FORMAT, **document}))


def read_fingerprints(location: Location, digests: Mapping[str, str]) -> list[FingerprintsDocument]:
    """Read the documents that a revision covers, oldest first.

    Args:
        location: The cache.
        digests: sha256 by key, as the revision has them.

    Raises:
        CacheDamaged: One is missing, malformed, or not what was written.
    """
    documents = []
    sealed = [key for key in digests if key.startswith(f"{_PREFIX}/")]
    for key in sorted(sealed, key=lambda key: (len(key), key)):  # as they are numbered
        content = location.read(key)
        if content is None:
            raise CacheDamaged(
                "a document of view fingerprints is missing", where=f"{location}/{key}"
            )
        if sha256(content) != digests[key]:
            raise CacheDamaged(
                "a document of view fingerprints has changed since it was sealed",
                where=f"{location}/{key}",
                expected=f"sha256 {digests[key]}",
                got=f"sha256 {sha256(content)}",
            )
        documents.append(_parsed(location, key, content))
    return documents


def _parsed(location: Location, key: str, content: bytes | None) -> FingerprintsDocument:
    where = f"{location}/{key}"
    what = "a document of view fingerprints is malformed"
    return validated(_DOCUMENT, parse_json(content or b"", where), where, what)
