"""Signatures of revisions: a DSSE envelope around an in-toto statement.

``docs/format.md`` is normative. The statement names the sha256 of the revision, which determines
every sealed byte, so checking a signature takes the same time for a cache of any size.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, TypeAdapter

from logitcache.cache.format.documents import parse_json, validated
from logitcache.cache.format.names import canonical_json
from logitcache.errors import CacheDamaged

if TYPE_CHECKING:
    from logitcache.cache.format.keys import PublicKey, SigningKey
    from logitcache.cache.format.manifest import RevisionPointer
    from logitcache.cache.store.base import Location

__all__ = [
    "PREDICATE",
    "SIGNATURES",
    "Envelope",
    "Statement",
    "new_envelope",
    "read_envelope",
    "signature_key",
]

SIGNATURES = "signatures"
PREDICATE = "urn:logitcache:provenance:1"
"""Type of the predicate: what a revision was computed from."""

_PAYLOAD = "application/vnd.in-toto+json"
_STATEMENT = "https://in-toto.io/Statement/v1"
_MOST_BYTES = 2**22
_Text = Annotated[str, Field(max_length=4096)]


@dataclass(frozen=True)
class Signature:
    """One signature of an envelope: id of the key, and 64 bytes in base64."""

    keyid: _Text
    sig: _Text


@dataclass(frozen=True)
class Statement:
    """What is signed.

    Attributes:
        number: Number of the revision.
        sha256: Its sha256.
        predicate: Provenance, as the signer has stated it.
    """

    number: int
    sha256: str
    predicate: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return the in-toto statement."""
        subject = {"name": f"revisions/{self.number}.json", "digest": {"sha256": self.sha256}}
        return {
            "_type": _STATEMENT,
            "subject": [subject],
            "predicateType": PREDICATE,
            "predicate": self.predicate,
        }


@dataclass(frozen=True)
class Envelope:
    """A signed statement.

    Attributes:
        payload: The statement as canonical JSON, in base64.
        signatures: Signatures of it, at most 64.
    """

    payload: str
    signatures: Annotated[tuple[Signature, ...], Field(min_length=1, max_length=64)]
    payloadType: str = _PAYLOAD  # noqa: N815  # the name in DSSE

    def to_json(self) -> dict[str, Any]:
        """Return the DSSE envelope."""
        signatures = [{"keyid": s.keyid, "sig": s.sig} for s in self.signatures]
        return {
            "payload": self.payload,
            "payloadType": self.payloadType,
            "signatures": signatures,
        }

    @property
    def signers(self) -> tuple[str, ...]:
        """Ids of the keys that are claimed to have signed; not checked."""
        return tuple(signature.keyid for signature in self.signatures)

    def statement(self) -> Statement | None:
        """Return the statement; None if it is not the one of a revision."""
        content = _decoded(self.payload)
        try:
            values = parse_json(content or b"", "payload")
            (subject,) = values["subject"]
            number = int(subject["name"].removeprefix("revisions/").removesuffix(".json"))
            found = Statement(number, subject["digest"]["sha256"], values["predicate"])
        except (CacheDamaged, KeyError, TypeError, ValueError, AttributeError):
            return None
        # compared as a whole, so that a field that is not read here cannot be changed either
        return found if content == canonical_json(found.to_json()) else None

    def is_signed_by(self, key: PublicKey) -> bool:
        """Return whether a valid signature of a key is among the signatures."""
        return any(
            signature.keyid == key.id
            and (sig := _decoded(signature.sig)) is not None
            and key.verifies(sig, self._signed)
            for signature in self.signatures
        )

    def signed(self, key: SigningKey) -> Envelope:
        """Return the envelope with the signature of a further key, or of the same key again."""
        others = tuple(s for s in self.signatures if s.keyid != key.public.id)
        sig = base64.b64encode(key.sign(self._signed)).decode()
        return Envelope(self.payload, (*others, Signature(key.public.id, sig)))

    @property
    def _signed(self) -> bytes:
        """The bytes that are signed, DSSE's pre-authentication encoding."""
        kind, payload = self.payloadType.encode(), _decoded(self.payload) or b""
        return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


_ENVELOPE = TypeAdapter(Envelope)


def signature_key(number: int) -> str:
    """Return the key of the signatures of a revision."""
    return f"{SIGNATURES}/{number}.json"


def new_envelope(statement: Statement, key: SigningKey) -> Envelope:
    """Return a statement with its first signature."""
    payload = base64.b64encode(canonical_json(statement.to_json())).decode()
    return Envelope(payload, ()).signed(key)


def read_envelope(location: Location, pointer: RevisionPointer) -> Envelope | None:
    """Read the signatures of a revision, which are not checked here; None if there are none.

    Raises:
        CacheDamaged: The document is malformed, or not canonical JSON.
    """
    key = signature_key(pointer.number)
    content = location.read(key, most=_MOST_BYTES)
    if content is None:
        return None
    where = f"{location}/{key}"
    what = "the signature of a revision is malformed"
    values = parse_json(content, where)
    found = validated(_ENVELOPE, values, where, what)
    if canonical_json(found.to_json()) != content:
        raise CacheDamaged(what, where=where, expected="canonical JSON of a DSSE envelope")
    return found


def _decoded(text: str) -> bytes | None:
    """Return the bytes of base64 in its one canonical form; None for any other text."""
    try:
        content = base64.b64decode(text.encode(), validate=True)
    except (binascii.Error, ValueError):
        return None
    return content if base64.b64encode(content).decode() == text else None
