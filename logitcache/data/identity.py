"""Identity of images: keys, hashes, digests, and the order of rows.

A row of a cache belongs to an image by name and by content, never by its position in a listing:
positions shift when a file is added. Rows are ordered by the hash of the key, so neither classes
nor folders cluster, and the order does not depend on the file system's.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Any
from unicodedata import category, normalize

from logitcache.data.lookup import KeyIndex, key_hash
from logitcache.errors import DataError
from logitcache.label_sets import label_texts

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from logitcache.data.source import Source

__all__ = [
    "content_digest",
    "fingerprint",
    "key_hash",
    "listing_digest",
    "normalize_key",
    "row_order",
    "stored_bytes",
]


def normalize_key(name: str) -> str:
    """Return a relative file name as a key: NFC, POSIX separators, no leading ``./``.

    Raises:
        DataError: It is not valid Unicode text, or leads out of the root of the data.
    """
    key = normalize("NFC", name.replace(os.sep, "/"))
    while key.startswith("./"):
        key = key[2:]
    # a lone surrogate has the category Cs
    if not key.isprintable() and any(c in "\0\n\r" or category(c) == "Cs" for c in key):
        raise DataError(
            "a file name is not valid text",
            where=repr(name)[:200],
            expected="Unicode without NUL or line breaks",
            hint="rename the file: a row is found by its key",
        )
    if key.startswith("/") or ".." in key.split("/"):
        raise DataError(
            "a file name leads out of the root of the data",
            where=repr(name)[:200],
            expected="a relative name without '..'",
        )
    return key


def content_digest(image: bytes | NDArray[np.uint8]) -> bytes:
    """Return the 16-byte blake2b digest of an image, see :func:`stored_bytes`."""
    return hashlib.blake2b(stored_bytes(image), digest_size=16).digest()


def stored_bytes(image: bytes | NDArray[np.uint8]) -> bytes:
    """Return the bytes that the digest and the size of an image refer to.

    They are its encoded bytes; for pixels without any, dtype, shape (``8,8``) and C-order bytes
    joined by NUL.
    """
    if isinstance(image, bytes):
        return image
    shape = ",".join(str(side) for side in image.shape)
    return b"\0".join([str(image.dtype).encode(), shape.encode(), image.tobytes()])


def fingerprint(images: Iterable[tuple[str, bytes]]) -> str:
    """Return the sha256, in hex, over (key, NUL, digest) of all rows in order."""
    sha256 = hashlib.sha256()
    for key, digest in images:
        sha256.update(key.encode() + b"\0" + digest)
    return sha256.hexdigest()


class _SelectedKeys:
    """Keys of a sequence at some positions, without a copy."""

    def __init__(self, keys: Sequence[str], positions: NDArray[np.signedinteger]) -> None:
        self._keys, self._positions = keys, positions

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: int) -> str:
        return self._keys[int(self._positions[index])]


def row_order(
    source: Source, among: NDArray[np.signedinteger] | None = None
) -> NDArray[np.signedinteger]:
    """Return the positions in a source of the rows of a segment: ordered by (hash, key).

    Args:
        source: The images.
        among: Positions to take; all by default.

    Returns:
        int32 (N,), int64 from 2^31 images on.

    Raises:
        DataError: Two images have the same key.
    """
    keys: Any = source.keys if among is None else _SelectedKeys(source.keys, among)
    order = KeyIndex(keys).order()
    before = None
    for position in order:
        key = keys[int(position)]
        if key == before:
            raise DataError(
                "two images have the same key",
                where=source.description,
                got=key,
                hint="rename one of them: a row is found by its key",
            )
        before = key
    return order if among is None else among[order]


def listing_digest(source: Source, rows: NDArray[np.signedinteger]) -> str:
    """Return the sha256, in hex, over key and labels of the images at some positions, in order."""
    sha256 = hashlib.sha256()
    for index, label in zip(rows, label_texts(source, rows), strict=True):
        sha256.update(f"{source.keys[index]}\0{label}\0".encode())
    return sha256.hexdigest()
