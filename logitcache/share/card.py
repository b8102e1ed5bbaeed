"""Writing of the card of a cache: README.md, croissant.json and an index of rows."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from logitcache.cache.format.card import CardConfig, read_facts, state_facts
from logitcache.cache.format.ledger import read_revision
from logitcache.cache.format.manifest import read_manifest
from logitcache.cache.format.names import CARD_DOCUMENTS, INDEX, sha256
from logitcache.cache.read.reader import open_cache
from logitcache.cache.store.open import locate
from logitcache.cache.write.claims import MANIFEST, Claims
from logitcache.cache.write.seal import write_changed
from logitcache.cache.write.writer import CacheWriter
from logitcache.errors import CacheUnsealed
from logitcache.report.card import Card, readme
from logitcache.report.croissant import croissant
from logitcache.report.describe import describe

if TYPE_CHECKING:
    import os

    from logitcache.cache.format.ledger import Revision
    from logitcache.cache.read.reader import Cache
    from logitcache.cache.store.base import Location

__all__ = ["WrittenCard", "card_notes", "write_card"]

_NO_INDEX = (
    "no index of rows (index.parquet) is written without pyarrow: pip install 'logitcache[parquet]'"
)


@dataclass(frozen=True)
class WrittenCard:
    """A card that was written.

    Attributes:
        number: Number of the revision that contains it.
        revision: Its sha256.
        changed: Documents that were written; empty if all were up to date.
        missing_licenses: What has no license.
        notes: Notes for the user.
    """

    number: int
    revision: str
    changed: tuple[str, ...]
    missing_licenses: tuple[str, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


def write_card(url: str | os.PathLike[str], facts: CardConfig | None = None) -> WrittenCard:
    """Write the card of a cache from what it contains and from what people state.

    The card is part of a new revision, unless it is up to date.

    Args:
        url: A sealed cache that can be written to.
        facts: Facts in addition to those that were stated before, or in their place.

    Raises:
        CacheUnsealed: The cache was never sealed.
        UsageError: A license is that of a teacher that the cache does not have.
    """
    location = locate(url, write=True)
    with Claims(location).exclusive(MANIFEST):
        writer = CacheWriter.open(location)
        if writer.manifest.revision is None:
            hint = "finish precompute first; logitcache status shows what is missing"
            raise CacheUnsealed("only a sealed cache has a card", where=location, hint=hint)
        revision = read_revision(location, writer.manifest.revision)
        before = {key: location.read(key) for key in CARD_DOCUMENTS}
        stated = state_facts(location, facts or CardConfig())
        if location.size(CARD_DOCUMENTS[0]) is None:
            location.write(CARD_DOCUMENTS[0], b'{"format":1}')
        notes = _write_documents(location, Card(describe(location), stated), revision)
        after = {key: location.read(key) for key in CARD_DOCUMENTS}
        digests = {key: sha256(content or b"") for key, content in after.items()}
        if any(revision.metadata.get(key) != digest for key, digest in digests.items()):
            revision = replace(revision, metadata={**revision.metadata, **digests})
            changed = write_changed(location, writer.manifest, revision)
            writer.publish(writer.manifest.changed(revision=changed))
    pointer = read_manifest(location).revision
    assert pointer is not None
    return WrittenCard(
        number=pointer.number,
        revision=pointer.sha256,
        changed=tuple(key for key in CARD_DOCUMENTS if before[key] != after[key]),
        missing_licenses=tuple(stated.missing_licenses(writer.manifest.teachers)),
        notes=notes,
    )


def card_notes(location: Location) -> tuple[str, ...]:
    """Return what whoever publishes a cache should know about its card.

    Args:
        location: The cache.
    """
    manifest = read_manifest(location)
    missing = read_facts(location).missing_licenses(manifest.teachers)
    notes = []
    if missing:
        notes.append(f"no license is stated for {', '.join(missing)} (logitcache card)")
    content = location.read(CARD_DOCUMENTS[1])
    if content is None:
        notes.append("the cache has no card: logitcache card CACHE writes README.md")
    elif content != readme(Card(describe(location), read_facts(location))).encode():
        notes.append("README.md describes an earlier state: logitcache card CACHE writes it again")
    return tuple(notes)


def _write_documents(location: Location, card: Card, revision: Revision) -> tuple[str, ...]:
    """Write README.md, croissant.json and the index where they differ; return notes."""
    index = _index(open_cache(location))
    if index is not None:
        _write(location, INDEX, index)
    ledgers = {pointer.key: pointer.sha256 for pointer in revision.ledgers.values()}
    metadata = croissant(card, ledgers, None if index is None else sha256(index))
    _write(location, "README.md", readme(card).encode())
    text = json.dumps(metadata, indent=1, ensure_ascii=False, sort_keys=True)
    _write(location, "croissant.json", text.encode() + b"\n")
    return () if index is not None else (_NO_INDEX,)


def _write(location: Location, key: str, content: bytes) -> None:
    if location.read(key, most=2**40) != content:
        location.write(key, content)


def _index(cache: Cache) -> bytes | None:
    """Return the index of rows as parquet; None where pyarrow is not installed."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        return None
    one = cache.manifest.data.label_width is None
    label = ("label", pa.int32()) if one else ("labels", pa.list_(pa.int32()))
    schema = pa.schema([("key", pa.string()), ("row", pa.int64()), label, ("digest", pa.string())])
    out = io.BytesIO()
    with parquet.ParquetWriter(out, schema, compression="zstd") as writer:
        for samples in cache.all_samples():
            at = samples.readable - samples.start
            digests = [samples.digests[row].tobytes().hex() for row in at]
            labels: Any = samples.labels[at]
            if samples.label_sets is not None:
                labels = [samples.label_sets[int(row)] for row in at]
            columns = [list(samples.keys[at]), samples.readable, labels, digests]
            arrays = [pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
    return out.getvalue()
