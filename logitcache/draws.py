"""Counter-based random numbers (Philox) for views and orders.

A view must be the same on another machine, in another order, and in later versions. No library
guarantees that for its random *streams* (see numpy's NEP 19 and torch's notes on reproducibility),
but the Philox4x64-10 block function is a published definition (Salmon et al., "Parallel random
numbers: as easy as 1, 2, 3", SC 2011). So each word has an address: key = (seed, hash of the sample
key), counter = (block, draw, purpose, 0), block counted from 1. There is no state to share or save.
``docs/views.md`` is normative.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["Purpose", "chosen", "permutation", "unit_floats", "words"]

_ROUNDS = 10
_LOW_32 = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)
_MULTIPLIERS = np.array([0xD2E7470EE14C6C93, 0xCA5A826395121157], np.uint64).reshape(2, 1, 1)
_MULTIPLIERS_HIGH, _MULTIPLIERS_LOW = _MULTIPLIERS >> _32, _MULTIPLIERS & _LOW_32
_WEYL = np.array([0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B], np.uint64).reshape(2, 1, 1)


class Purpose(IntEnum):
    """Purpose of a word, the third word of the Philox counter. Numbers are never reused."""

    CROP = 1
    FLIP = 2
    RAND_AUGMENT = 3
    COLOR_JITTER = 4
    GREY = 5
    BLUR = 6
    ERASING = 7
    NOISE = 8
    MIX = 9
    PARTNER = 10
    MASK = 11
    VERTICAL_FLIP = 12
    TOKENS = 13
    VIEW_ORDER = 64
    UNIT_ORDER = 65
    ROW_ORDER = 66
    LABELLED_ROWS = 67
    SHUFFLED_TARGETS = 68
    RANK_STREAM = 69
    SYNTHETIC_IMAGE = 70
    VIEW_CHOICE = 71


def words(
    seed: int,
    hashes_N: ArrayLike,
    *,
    draw: int,
    purpose: Purpose,
    count: int,
    first_block: int = 0,
) -> NDArray[np.uint64]:
    """Return ``count`` words of every sample, the first ones by default.

    Args:
        seed: First word of the key, 0 <= seed < 2^64.
        hashes_N: Second word of the key for each sample, uint64.
        draw: Second word of the counter, 0 <= draw < 2^32.
        purpose: Third word of the counter.
        count: Words per sample.
        first_block: Number of blocks of four words to skip.

    Returns:
        uint64 array (N, count).
    """
    hashes_N = np.atleast_1d(np.asarray(hashes_N, dtype=np.uint64))
    blocks = -(-count // 4)
    shape = (len(hashes_N), blocks)
    counter = np.zeros((4, *shape), dtype=np.uint64)
    counter[0] = np.arange(first_block + 1, first_block + blocks + 1, dtype=np.uint64)
    counter[1] = np.uint64(draw)
    counter[2] = np.uint64(purpose)
    key = (np.uint64(seed), np.broadcast_to(hashes_N[:, None], shape))
    block_4NB = _philox(counter, key)
    return np.moveaxis(block_4NB, 0, -1).reshape(len(hashes_N), 4 * blocks)[:, :count]


def unit_floats(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Return floats in [0, 1) with 53 random bits: (word >> 11) * 2^-53, any shape."""
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(
    seed: int, size: int, *, draw: int, purpose: Purpose, stream: int = 0
) -> NDArray[np.int64]:
    """Return a permutation of range(size) that depends on its address only.

    Args:
        seed: First word of the key.
        size: Number of items.
        draw: Second word of the counter, such as an epoch or cycle.
        purpose: Third word of the counter.
        stream: Second word of the key, which distinguishes permutations of one draw.

    Returns:
        int64 array (size,): the stable argsort of ``size`` words.
    """
    keys = words(seed, stream, draw=draw, purpose=purpose, count=size)[0]
    return np.argsort(keys, kind="stable")


def chosen(
    seed: int, hashes: NDArray[np.uint64], count: int, *, purpose: Purpose
) -> NDArray[np.int64]:
    """Return the positions of randomly chosen items; the choice does not depend on their order.

    Args:
        seed: First word of the key.
        hashes: Second words of the key, one for each item, uint64 (N,).
        count: Number of items to choose; all if there are fewer.
        purpose: Third word of the counter.

    Returns:
        int64 array of positions in ``hashes``: those with the smallest words, smallest first.
    """
    drawn = words(seed, hashes, draw=0, purpose=purpose, count=1)
    return np.argsort(drawn[:, 0], kind="stable")[:count]


def _philox(
    counter: NDArray[np.uint64], key: tuple[np.uint64, NDArray[np.uint64]]
) -> NDArray[np.uint64]:
    """Apply Philox4x64-10 to counters (4, ...).

    Words 0 and 2 of a counter are multiplied in the same way, as are the two words of the key
    incremented, so both are kept in one array: a batch is small, and calls of numpy are what costs.
    """
    # sums of uint64 arrays wrap around modulo 2^64, as the definition requires
    even, odd = counter[0::2], counter[1::2]
    keys = np.stack(np.broadcast_arrays(key[0], key[1]))
    for _ in range(_ROUNDS):
        high, low = _multiply(even)
        even, odd = high[::-1] ^ odd ^ keys, low[::-1]
        keys += _WEYL
    return np.stack([even[0], odd[0], even[1], odd[1]])


def _multiply(a: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Return the high and the low words of 128-bit products with the multipliers, (2, N, blocks).

    A product is computed by 32-bit halves.
    """
    a_high, a_low = a >> _32, a & _LOW_32
    cross = a_high * _MULTIPLIERS_LOW + ((a_low * _MULTIPLIERS_LOW) >> _32)
    cross_low = (cross & _LOW_32) + a_low * _MULTIPLIERS_HIGH
    high = a_high * _MULTIPLIERS_HIGH + (cross >> _32) + (cross_low >> _32)
    return high, a * _MULTIPLIERS
