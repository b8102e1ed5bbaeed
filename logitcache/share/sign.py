"""Signing of a revision, with the provenance of its images and teachers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from logitcache.cache.format.envelope import (
    Statement,
    new_envelope,
    read_envelope,
    signature_key,
)
from logitcache.cache.format.keys import read_signing_key
from logitcache.cache.format.ledger import read_revision
from logitcache.cache.format.manifest import check_revision, read_manifest
from logitcache.cache.format.names import canonical_json, sha256
from logitcache.cache.read.signature import check_contents, check_signed
from logitcache.cache.store.open import locate
from logitcache.cache.write.claims import MANIFEST, Claims
from logitcache.errors import CacheUnsealed, UsageError

if TYPE_CHECKING:
    import os

    from logitcache.cache.format.envelope import Envelope
    from logitcache.cache.format.keys import SigningKey
    from logitcache.cache.format.ledger import Revision
    from logitcache.cache.format.manifest import Manifest
    from logitcache.cache.store.base import Location

__all__ = ["Signed", "sign_cache"]


@dataclass(frozen=True)
class Signed:
    """A revision that was signed.

    Attributes:
        number: Number of the revision.
        revision: Its sha256.
        signer: Id of the key: ``ed25519:`` and the sha256 of the public key.
        signers: Ids of all keys that have signed it.
    """

    number: int
    revision: str
    signer: str
    signers: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


def sign_cache(
    url: str | os.PathLike[str],
    key: str | os.PathLike[str],
    *,
    command: str | None = None,
    revision: str | None = None,
) -> Signed:
    """Sign the current revision of a cache; other signatures of it are kept.

    Args:
        url: A sealed cache that can be written to.
        key: File with an Ed25519 private key.
        command: The command that computed the cache, which becomes part of the statement.
        revision: sha256 that the revision must have, or its first 12 digits or more.

    Raises:
        CacheUnsealed: The cache was never sealed.
        CacheDamaged: It has another revision.
        SignatureError: The root, the card or the exclusions differ from those of the revision.
        UsageError: The key cannot be used, or a signed statement has another command.
    """
    signing_key = read_signing_key(key)
    location = locate(url, write=True)
    with Claims(location).exclusive(MANIFEST):
        manifest = read_manifest(location)
        check_revision(manifest, revision, location)
        pointer = manifest.revision
        if pointer is None:
            hint = "finish precompute first; logitcache status shows what is missing"
            raise CacheUnsealed("only a sealed revision can be signed", where=location, hint=hint)
        sealed = read_revision(location, pointer)
        check_contents(location, manifest, sealed)
        envelope = _signed(location, manifest, sealed, signing_key, command)
        content = canonical_json(envelope.to_json())
        location.write(signature_key(pointer.number), content)
        check_signed(location, manifest, signing_key.public)
    return Signed(pointer.number, pointer.sha256, signing_key.public.id, envelope.signers)


def _signed(
    location: Location,
    manifest: Manifest,
    sealed: Revision,
    key: SigningKey,
    command: str | None,
) -> Envelope:
    """Return the envelope of a revision with the signature of a further key."""
    pointer = manifest.revision
    assert pointer is not None
    envelope = read_envelope(location, pointer)
    known = None if envelope is None else envelope.statement()
    if envelope is None or known is None or known.sha256 != pointer.sha256:
        predicate = provenance(manifest, sealed, command)
        return new_envelope(Statement(pointer.number, pointer.sha256, predicate), key)
    if command is not None and known.predicate.get("command") != command:
        raise UsageError(
            "the revision is signed already, with another command",
            where=f"{location}/{signature_key(pointer.number)}",
            expected=known.predicate.get("command", "no command"),
            got=command,
            hint="leave --command out to add a signature to the same statement",
        )
    return envelope.signed(key)


def provenance(manifest: Manifest, revision: Revision, command: str | None) -> dict[str, Any]:
    """Return what a revision was computed from, as the predicate of its statement."""
    data = manifest.data
    found: dict[str, Any] = {
        "images": {
            "description": data.description,
            "fingerprint": data.fingerprint,
            "rows": sum(rows for _, rows in revision.segments),
            "classes": len(data.class_names),
        },
        "teachers": {
            name: {
                "architecture": record.locked.architecture or "unknown",
                "weights_sha256": record.locked.weights_sha256,
                "lock_sha256": sha256(canonical_json(record.lock)),
                "source": record.source,
            }
            for name, record in manifest.teachers.items()
        },
        "views": sorted(manifest.views),
        "versions": manifest.versions,
        "parents": list(revision.parents),
        "signed_with": {"logitcache": version("logitcache")},
    }
    return found if command is None else {**found, "command": command}
