"""A pseudorandom permutation in constant memory, with its inverse.

A keyed Feistel network permutes the numbers below a power of two; results outside of the range are
permuted again until they fall inside (cycle walking; Black and Rogaway, "Ciphers with arbitrary
finite domains", CT-RSA 2002). The round function is the finalizer of splitmix64 (Steele, Lea and
Flood, OOPSLA 2014) over half of the bits plus a round key; the keys are Philox words. Few items are
permuted by sorting random words, which is as cheap for them and can give every order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from logitcache.draws import Purpose, permutation, words

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["AT_ONCE", "Shuffle"]

AT_ONCE = 1 << 16  # items per block; up to this size, permutations are made by sorting
_ROUNDS = 8
_SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))
_FACTORS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


class Shuffle:
    """A permutation of range(size) that depends on its arguments only.

    Args:
        seed: First word of the Philox key.
        size: Number of items.
        draw: Second word of the counter, for example the epoch.
        purpose: Third word of the counter.
        stream: Second word of the key, for several permutations of one draw.
    """

    def __init__(
        self, seed: int, size: int, *, draw: int, purpose: Purpose, stream: int = 0
    ) -> None:
        self._size = size
        self._table: NDArray[np.int64] | None = None
        if size <= AT_ONCE:
            self._table = permutation(seed, size, draw=draw, purpose=purpose, stream=stream)
            return
        bits = (size - 1).bit_length()
        self._low_bits = np.uint64(bits // 2)
        self._low = np.uint64((1 << (bits // 2)) - 1)
        self._high = np.uint64((1 << (bits - bits // 2)) - 1)
        self._keys = words(seed, stream, draw=draw, purpose=purpose, count=_ROUNDS)[0]

    def __len__(self) -> int:
        return self._size

    def at(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the items at some places, int64."""
        if self._table is not None:
            return self._table[places]
        return self._walk(places, range(_ROUNDS))

    def places(self, items: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the places of some items, int64: the inverse of :meth:`at`."""
        if self._table is not None:
            return np.argsort(self._table)[items]
        return self._walk(items, range(_ROUNDS - 1, -1, -1))

    def _walk(self, numbers: NDArray[np.int64], rounds: range) -> NDArray[np.int64]:
        # ends: the power of two is less than twice the size, and each cycle of a permutation that
        # starts inside of the range returns to it
        found = self._mix(numbers.astype(np.uint64), rounds)
        outside = np.flatnonzero(found >= self._size)
        while len(outside):
            found[outside] = self._mix(found[outside], rounds)
            outside = outside[found[outside] >= self._size]
        return found.astype(np.int64)

    def _mix(self, numbers: NDArray[np.uint64], rounds: range) -> NDArray[np.uint64]:
        """Apply the rounds; each is its own inverse, so reversed rounds invert the permutation."""
        high, low = numbers >> self._low_bits, numbers & self._low
        for number in rounds:
            key = self._keys[number]
            if number % 2:
                high ^= _finalized(low + key) & self._high
            else:
                low ^= _finalized(high + key) & self._low
        return (high << self._low_bits) | low


def _finalized(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    # in place, since callers pass a fresh sum; products wrap modulo 2^64, as splitmix64 defines
    z ^= z >> _SHIFTS[0]
    z *= _FACTORS[0]
    z ^= z >> _SHIFTS[1]
    z *= _FACTORS[1]
    z ^= z >> _SHIFTS[2]
    return z
