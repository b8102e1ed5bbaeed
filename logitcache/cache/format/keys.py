"""Ed25519 keys from files: PEM as openssl writes it, or OpenSSH."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from logitcache.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

__all__ = ["PASSPHRASE", "PublicKey", "SigningKey", "read_public_key", "read_signing_key"]

PASSPHRASE = "LOGITCACHE_KEY_PASSPHRASE"  # the name of a variable
"""Environment variable with the passphrase of a private key."""

_MOST_BYTES = 2**16
_NEW_KEY = "make one: openssl genpkey -algorithm ed25519 -out key.pem"


@dataclass(frozen=True)
class PublicKey:
    """A public key.

    Attributes:
        key: The key.
        id: ``ed25519:`` and the sha256 of its 32 bytes.
    """

    key: Ed25519PublicKey
    id: str

    @classmethod
    def of(cls, key: Ed25519PublicKey) -> PublicKey:
        """Return a key with its id."""
        return cls(key, f"ed25519:{hashlib.sha256(key.public_bytes_raw()).hexdigest()}")

    def verifies(self, signature: bytes, content: bytes) -> bool:
        """Return whether a signature of some content was made with the private key."""
        from cryptography.exceptions import InvalidSignature

        try:
            self.key.verify(signature, content)
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True)
class SigningKey:
    """A private key and its public key."""

    key: Ed25519PrivateKey
    public: PublicKey

    def sign(self, content: bytes) -> bytes:
        """Return the signature of some content, 64 bytes."""
        return self.key.sign(content)


def read_signing_key(path: str | os.PathLike[str]) -> SigningKey:
    """Read a private key: PEM (PKCS 8) or OpenSSH; its passphrase is read from the environment.

    Raises:
        UsageError: No such file, another kind of key, or a passphrase that is missing or wrong.
    """
    serialization = _serialization()
    content = _content(path)
    text = os.environ.get(PASSPHRASE)
    password = None if text is None else text.encode()
    ssh = b"OPENSSH PRIVATE KEY" in content
    load = serialization.load_ssh_private_key if ssh else serialization.load_pem_private_key
    if b"PRIVATE KEY" not in content:
        raise _not_a_key(path, "a private key", "a file of another kind")
    if password is not None and not _is_encrypted(load, content):
        password = None  # of another key of this user
    try:
        key = load(content, password=password)
    except (ValueError, TypeError) as error:  # TypeError: encrypted, and no passphrase was given
        hint = f"set {PASSPHRASE} if the key has a passphrase"
        raise UsageError(
            "the private key cannot be read",
            where=path,
            expected="an Ed25519 key as PEM (PKCS 8) or OpenSSH",
            got=str(error)[:200],
            hint=hint,
        ) from None
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    if not isinstance(key, Ed25519PrivateKey):
        raise _not_a_key(path, "an Ed25519 private key", type(key).__name__)
    return SigningKey(key, PublicKey.of(key.public_key()))


def read_public_key(path: str | os.PathLike[str]) -> PublicKey:
    """Read a public key: PEM, or one line of OpenSSH.

    Raises:
        UsageError: No such file, a private key, or another kind of key.
    """
    serialization = _serialization()
    content = _content(path)
    if b"PRIVATE KEY" in content:
        hint = "openssl pkey -in key.pem -pubout -out key.pub writes the public key"
        what = "this is a private key, which is not to be handed to those who verify"
        raise UsageError(what, where=path, expected="a public key", hint=hint)
    ssh = content.startswith(b"ssh-")
    load = serialization.load_ssh_public_key if ssh else serialization.load_pem_public_key
    try:
        key = load(content)
    except Exception as error:  # the library has several classes for files it does not know
        raise _not_a_key(path, "an Ed25519 public key, PEM or OpenSSH", str(error)[:200]) from None
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    if not isinstance(key, Ed25519PublicKey):
        raise _not_a_key(path, "an Ed25519 public key", type(key).__name__)
    return PublicKey.of(key)


def _is_encrypted(load: Callable[..., Any], content: bytes) -> bool:
    try:
        load(content, password=None)
    except (TypeError, ValueError):
        return True
    return False


def _not_a_key(path: object, expected: str, got: str) -> UsageError:
    what = "the file is not a key that signatures of caches are made with"
    return UsageError(what, where=path, expected=expected, got=got, hint=_NEW_KEY)


def _content(path: str | os.PathLike[str]) -> bytes:
    file = Path(path).expanduser()
    try:
        if not file.is_file() or file.stat().st_size > _MOST_BYTES:
            raise UsageError("no key in this place", where=path, expected="a file", hint=_NEW_KEY)
        return file.read_bytes()
    except OSError as error:
        raise UsageError("the key cannot be read", where=path, got=error.strerror) from None


def _serialization() -> Any:
    try:
        from cryptography.hazmat.primitives import serialization
    except ImportError:
        raise UsageError(
            "signatures require a package that is not installed",
            expected="the package cryptography",
            hint="pip install 'logitcache[sign]'",
        ) from None
    return serialization
