"""Index of images by key, with 8 bytes per image.

The high bits of a key's hash and the image's position share one word; sorted, the words are both an
index to search in and the order of rows. Where hashes agree in those bits, keys decide.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from numpy.typing import NDArray

__all__ = ["KeyIndex", "key_hash", "key_hashes", "position_dtype"]

_AT_ONCE = 1 << 16


def key_hash(key: str) -> int:
    """Return the hash of a key: big-endian uint64 of blake2b(key in UTF-8, 8 bytes)."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")


def key_hashes(keys: Sequence[str], positions: NDArray[np.integer]) -> NDArray[np.uint64]:
    """Return the hashes of the keys at some positions, uint64."""
    return np.fromiter((key_hash(keys[int(i)]) for i in positions), np.uint64, len(positions))


def position_dtype(count: int) -> type[np.signedinteger]:
    """Return the smallest dtype for positions below ``count``, and -1."""
    return np.int32 if count < 2**31 else np.int64


class KeyIndex:
    """Index of a sequence of keys.

    Args:
        keys: The keys; referenced, not copied.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self._keys = keys
        self._bits = np.uint64(max(1, (len(keys) - 1).bit_length()))
        self._mask = (np.uint64(1) << self._bits) - np.uint64(1)
        self._words = np.empty(len(keys), dtype=np.uint64)
        # block by block, so that only the index takes memory for all images; sorted in place
        for start in range(0, len(keys), _AT_ONCE):
            positions = np.arange(start, min(start + _AT_ONCE, len(keys)))
            high = self._high(key_hashes(keys, positions))
            self._words[positions[0] : positions[-1] + 1] = high | positions.astype(np.uint64)
        self._words.sort()

    def __len__(self) -> int:
        return len(self._words)

    def find(self, keys: Collection[str], hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Return the position of each of some keys, int64, -1 where there is none.

        Args:
            keys: The keys to find.
            hashes: Their hashes, uint64.
        """
        high = self._high(hashes)
        first = np.searchsorted(self._words, high)
        return np.fromiter(
            (self._match(key, h, int(i)) for key, h, i in zip(keys, high, first, strict=True)),
            np.int64,
            len(keys),
        )

    def order(self) -> NDArray[np.signedinteger]:
        """Return the positions ordered by (hash, key)."""
        found = np.empty(len(self), dtype=position_dtype(len(self)))
        for start in range(0, len(self), _AT_ONCE):
            here = slice(start, start + _AT_ONCE)
            found[here] = self._words[here] & self._mask
        for start, stop in self._runs():
            some = [int(position) for position in found[start:stop]]
            found[start:stop] = sorted(some, key=lambda p: (key_hash(self._keys[p]), self._keys[p]))
        return found

    def _high(self, hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
        high: NDArray[np.uint64] = (hashes >> self._bits) << self._bits
        return high

    def _match(self, key: str, high: np.uint64, index: int) -> int:
        words = self._words
        while index < len(words) and words[index] & ~self._mask == high:
            position = int(words[index] & self._mask)
            if self._keys[position] == key:
                return position
            index += 1
        return -1

    def _runs(self) -> Iterator[tuple[int, int]]:
        """Yield ranges of words that agree in all the bits of the hash that a word has room for."""
        start = stop = -1
        for first in range(0, len(self) - 1, _AT_ONCE):
            # one word of the next block as well, for the neighbors across the border
            high = self._high(self._words[first : first + _AT_ONCE + 1])
            for index in (first + np.flatnonzero(high[1:] == high[:-1])).tolist():
                if index != stop - 1:
                    if stop > 0:
                        yield start, stop
                    start = index
                stop = index + 2
        if stop > 0:
            yield start, stop
