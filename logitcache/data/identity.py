"""Which image is which: keys, hashes, digests, and the order of rows.

A row of a cache belongs to an image by name and by content, never by its position in a listing:
positions shift when a file is added. Rows are ordered by the hash of the key, so neither classes
nor folders cluster, and the order does not depend on the file system's.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from logitcache.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from numpy.typing import NDArray

    from logitcache.data.source import Source

__all__ = [
    "Difference",
    "Rows",
    "compare",
    "content_digest",
    "fingerprint",
    "key_hash",
    "listing_digest",
    "normalise_key",
    "row_order",
    "stored_bytes",
]


def normalise_key(name: str) -> str:
    """Return a relative file name as a key: NFC, POSIX separators, no leading ``./``.

    Raises:
        DataError: It is no Unicode, or leads out of the data's root.
    """
    key = unicodedata.normalize("NFC", name.replace(os.sep, "/"))
    while key.startswith("./"):
        key = key[2:]
    if not key.isprintable() and not _is_text(key):
        raise DataError(
            "a file name that is no text",
            where=repr(name)[:200],
            expected="Unicode without NUL or line breaks",
            hint="rename the file: a row is found by its key",
        )
    if key.startswith("/") or ".." in key.split("/"):
        raise DataError("a file name leads out of the data's root", where=repr(name)[:200])
    return key


def _is_text(key: str) -> bool:
    """Return whether a key can be written down: no lone surrogate, no NUL, no line break."""
    return not any(c in "\0\n\r" or unicodedata.category(c) == "Cs" for c in key)


def key_hash(key: str) -> int:
    """Return the hash of a key: big-endian uint64 of blake2b(key in UTF-8, 8 bytes)."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")


def content_digest(image: bytes | NDArray[np.uint8]) -> bytes:
    """Return the 16-byte blake2b digest of an image, see :func:`stored_bytes`."""
    return hashlib.blake2b(stored_bytes(image), digest_size=16).digest()


def stored_bytes(image: bytes | NDArray[np.uint8]) -> bytes:
    """Return what is digested and counted of an image.

    That is its encoded bytes; for pixels that have none, dtype, shape (``8,8``) and C-order bytes
    joined by NUL.
    """
    if isinstance(image, bytes):
        return image
    shape = ",".join(str(side) for side in image.shape)
    return b"\0".join([str(image.dtype).encode(), shape.encode(), image.tobytes()])


def fingerprint(keys: Iterable[str], digests: Iterable[bytes]) -> str:
    """Return the sha256, in hex, over (key, NUL, digest) of all rows in order."""
    sha256 = hashlib.sha256()
    for key, digest in zip(keys, digests, strict=True):
        sha256.update(key.encode() + b"\0" + digest)
    return sha256.hexdigest()


@dataclass(frozen=True)
class Rows:
    """Images of a source in the order of rows.

    Attributes:
        indices: Position in the source of every row, int64 (N,).
        hashes: Hash of the key of every row, uint64 (N,), ascending.
    """

    indices: NDArray[np.int64]
    hashes: NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.indices)


def row_order(source: Source, among: Sequence[int] | None = None) -> Rows:
    """Return the rows of a segment: images ordered by (hash, key).

    Args:
        source: The images.
        among: Positions to take; all by default.

    Raises:
        DataError: Two images have the same key.
    """
    chosen = list(range(len(source.keys)) if among is None else among)
    addressed = sorted((key_hash(source.keys[i]), source.keys[i], i) for i in chosen)
    for (_, key, _), (_, following, _) in itertools.pairwise(addressed):
        if key == following:
            raise DataError(
                "two images have the same key",
                where=source.description,
                got=key,
                hint="rename one of them: a row is found by its key",
            )
    return Rows(
        indices=np.array([index for _, _, index in addressed], dtype=np.int64),
        hashes=np.array([hash_ for hash_, _, _ in addressed], dtype=np.uint64),
    )


@dataclass(frozen=True)
class Difference:
    """How a source differs from what a cache knows.

    Attributes:
        missing: Keys that the source lacks.
        changed: Keys whose image has another number of bytes.
        added: Positions in the source of images that are not known.
    """

    missing: list[str]
    changed: list[str]
    added: list[int]

    def summary(self, withdrawn: Collection[str] = (), names: int = 3) -> str:
        """Return counts and the first names, in words.

        Args:
            withdrawn: Keys that may be missing.
            names: How many of each kind are named.
        """
        missing = [key for key in self.missing if key not in withdrawn]
        return "; ".join(
            f"{len(keys)} {what}"
            + (f": {', '.join(keys[:names])}" if keys else "")
            + (", …" if len(keys) > names else "")
            for what, keys in (("missing", missing), ("of another size", self.changed))
        )


def compare(
    source: Source, keys: Iterable[str], sizes: NDArray[np.int64]
) -> tuple[NDArray[np.int64], Difference]:
    """Find known images in a source, by key; order and root folder do not matter.

    Args:
        source: The images at hand.
        keys: Known keys.
        sizes: Bytes of each known image; -1 where unknown.

    Returns:
        The position in the source of every known key, -1 where it is missing, and the difference.
    """
    position = {key: index for index, key in enumerate(source.keys)}
    names = np.array(list(keys), dtype=object)
    found = np.array([position.get(key, -1) for key in names], dtype=np.int64)
    here = found >= 0
    known, actual = np.asarray(sizes)[here], source.sizes[found[here]]
    differs = (known >= 0) & (actual >= 0) & (known != actual)
    known_keys = set(names)
    return found, Difference(
        missing=list(names[~here]),
        changed=list(names[here][differs]),
        added=[index for key, index in position.items() if key not in known_keys],
    )


def listing_digest(source: Source, rows: Rows) -> str:
    """Return the sha256, in hex, over key and label of rows in order."""
    sha256 = hashlib.sha256()
    for index in rows.indices:
        sha256.update(f"{source.keys[index]}\0{source.labels[index]}\0".encode())
    return sha256.hexdigest()
