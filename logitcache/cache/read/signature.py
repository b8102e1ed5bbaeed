"""Check of a cache against the public key of its signer, before anything of it is used.

A signature covers the sha256 of a revision. What does not follow from the revision (the root, and
documents that a reader takes from the folder as they are) is compared here as well.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from logitcache.cache.format.documents import parse_json
from logitcache.cache.format.envelope import read_envelope, signature_key
from logitcache.cache.format.keys import read_public_key
from logitcache.cache.format.ledger import Revision, manifest_digest, read_revision
from logitcache.cache.format.manifest import Manifest, check_revision, read_manifest
from logitcache.cache.format.names import (
    ATTRIBUTE,
    CARD_DOCUMENTS,
    MANIFEST_CLAIM,
    revision_key,
    sha256,
)
from logitcache.cache.read.exclusions import withdrawal_keys
from logitcache.errors import CacheDamaged, LogitcacheError, SignatureError

if TYPE_CHECKING:
    import os

    from logitcache.cache.format.keys import PublicKey
    from logitcache.cache.format.manifest import RevisionPointer
    from logitcache.cache.store.base import Location

__all__ = ["check_contents", "check_signed", "signed_revision"]

_ATTEMPTS, _SECONDS = 20, 0.25


def signed_revision(
    location: Location, signed_by: str | os.PathLike[str], revision: str | None = None
) -> str:
    """Return the sha256 of the current revision if a key has signed it, in constant time.

    Documents are replaced one by one while a process publishes a revision, so a check that fails
    meanwhile is repeated for a few seconds.

    Args:
        location: The cache.
        signed_by: File with the public key.
        revision: sha256 that the revision must have, or its first 12 digits or more.

    Raises:
        SignatureError: It is not signed by this key, or something differs from what was signed.
        UsageError: The file is not a public key.
        CacheError: There is no cache.
    """
    key = read_public_key(signed_by)
    for attempt in range(_ATTEMPTS):
        try:
            manifest = read_manifest(location)
            check_revision(manifest, revision, location)
            return check_signed(location, manifest, key).sha256
        except LogitcacheError:
            published = location.size(MANIFEST_CLAIM) is None
            if published or attempt == _ATTEMPTS - 1:
                raise
            time.sleep(_SECONDS)
    raise AssertionError  # the last attempt has returned or raised


def check_signed(location: Location, manifest: Manifest, key: PublicKey) -> RevisionPointer:
    """Compare a cache with its signature.

    Args:
        location: The cache.
        manifest: Its root manifest.
        key: The public key that has to have signed the current revision.

    Raises:
        SignatureError: The revision is not signed by this key, or something differs from what was
            signed.
    """
    pointer = manifest.revision
    if pointer is None:
        raise SignatureError("the cache has no sealed revision to be signed", where=location)
    _check_statement(location, pointer, key)
    try:
        sealed = read_revision(location, pointer)
    except CacheDamaged as error:
        raise SignatureError(error.what, where=error.where, got=error.got) from None
    check_contents(location, manifest, sealed)
    for newer in (revision_key(pointer.number + 1), signature_key(pointer.number + 1)):
        if location.size(newer) is not None and location.size(MANIFEST_CLAIM) is None:
            raise SignatureError(
                "an older signed revision was put back: there is a newer one",
                where=f"{location}/{newer}",
                got=pointer,
                hint="ask the signer which revision is current; verify lists what is wrong",
            )
    return pointer


def _check_statement(location: Location, pointer: RevisionPointer, key: PublicKey) -> None:
    """Refuse a revision without a valid signature of a key, or with that of another revision."""
    where = f"{location}/{signature_key(pointer.number)}"
    try:
        envelope = read_envelope(location, pointer)
    except CacheDamaged as error:
        raise SignatureError(error.what, where=where, got=error.got) from None
    if envelope is None:
        raise SignatureError(
            "the current revision is not signed",
            where=location,
            expected=f"signed by {key.id}",
            got=pointer,
            hint="logitcache inspect shows which earlier revision is signed; "
            "logitcache pull CACHE COPY --revision SHA256 copies it",
        )
    if not envelope.is_signed_by(key):
        got = ", ".join(envelope.signers)[:200]
        what = "the revision has no valid signature of this key"
        raise SignatureError(what, where=where, expected=key.id, got=f"signatures of {got}")
    statement = envelope.statement()
    if statement is None or (statement.number, statement.sha256) != (
        pointer.number,
        pointer.sha256,
    ):
        got = "another document" if statement is None else f"sha256 {statement.sha256}"
        what = "the signature is that of another revision"
        raise SignatureError(what, where=where, expected=pointer, got=got)


def check_contents(location: Location, manifest: Manifest, sealed: Revision) -> None:
    """Compare what readers use besides a revision with it: the root, the card, the exclusions.

    Raises:
        SignatureError: Something differs, or is not part of the revision.
    """
    _check_root(location, manifest, sealed)
    _check_documents(location, sealed)


def _check_root(location: Location, manifest: Manifest, sealed: Revision) -> None:
    """Refuse a root that has anything besides the sealed manifest."""
    where = f"{location}/zarr.json"
    document = parse_json(location.read("zarr.json") or b"", where)
    empty = {"consolidated_metadata": None}
    plain = {"zarr_format": 3, "node_type": "group"}
    attributes = document.pop("attributes", None)
    known = isinstance(attributes, dict) and attributes.keys() == {ATTRIBUTE}
    if document not in (plain, plain | empty) or not known:
        raise SignatureError("the root has fields that were not signed", where=where)
    if manifest_digest(manifest) != sealed.manifest_sha256:
        raise SignatureError(
            "the manifest differs from the signed one",
            where=where,
            expected=f"sha256 {sealed.manifest_sha256}",
            got=f"sha256 {manifest_digest(manifest)}",
            hint="a run has declared more since, or somebody has changed it: logitcache pull "
            "copies the signed revision alone",
        )


def _check_documents(location: Location, sealed: Revision) -> None:
    """Compare the card, and refuse exclusions that the revision does not name."""
    for key in CARD_DOCUMENTS:
        digest = sealed.metadata.get(key)
        content = location.read(key)
        if digest != (None if content is None else sha256(content)):
            what = f"{key} differs from the signed document"
            if digest is None:
                what = f"{key} is not part of the signed revision"
            raise SignatureError(what, where=f"{location}/{key}")
    added = set(withdrawal_keys(location)) - sealed.metadata.keys()
    if added:
        what = "an exclusion is not part of the signed revision"
        raise SignatureError(what, where=f"{location}/{min(added)}")
