"""Join of the images of a source with the known images of a cache, by key.

Keys, sizes and classes are compared here, the same way for training, precomputing, verifying and
repairing; contents only when an image is read, by :func:`check_content`. The order of the images
and the root folder do not matter. A key that a source has twice is refused where rows are numbered,
see :func:`~logitcache.data.identity.row_order`.

Shapes: N known images.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from logitcache.data.classes import label_table
from logitcache.data.identity import content_digest
from logitcache.data.lookup import KeyIndex, key_hash, position_dtype
from logitcache.errors import DataMismatch
from logitcache.label_sets import label_sets_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from numpy.typing import NDArray

    from logitcache.data.source import Source
    from logitcache.label_sets import LabelSets

__all__ = ["ImageJoin", "Joined", "NamedKeys", "check_content", "is_same_content"]

_NAMES = 3  # keys that a message names


@dataclass(frozen=True)
class Joined:
    """Positions of known images in a source, and their differences.

    Attributes:
        positions: Position of each in the source, int64 (N,); -1 where the source lacks it.
        resized: Which images have another number of bytes, bool (N,).
        relabeled: Which images have classes of other names, bool (N,); an image without labels on
            either side counts as equal.
    """

    positions: NDArray[np.int64]
    resized: NDArray[np.bool_]
    relabeled: NDArray[np.bool_]

    @property
    def found(self) -> NDArray[np.bool_]:
        """Which images the source has, bool (N,)."""
        found: NDArray[np.bool_] = self.positions >= 0
        return found


class ImageJoin:
    """Index of a source in which known images are found.

    Args:
        source: The images.
        class_names: Class names of the cache; without them labels are not compared.
    """

    def __init__(self, source: Source, class_names: Sequence[str] = ()) -> None:
        self._source = source
        self._index = KeyIndex(source.keys)
        self._seen = np.zeros(len(source.keys), dtype=np.bool_)
        self._to_cache = label_table(source.class_names, class_names) if class_names else None

    def find(
        self,
        keys: NDArray[np.object_],
        hashes: NDArray[np.uint64] | None = None,
        sizes: NDArray[np.int64] | None = None,
        labels: NDArray[np.int32] | None = None,
        label_sets: LabelSets | None = None,
    ) -> Joined:
        """Find known images.

        Args:
            keys: Their keys, (N,).
            hashes: Hashes of the keys; computed if None.
            sizes: Bytes of each image, -1 where unknown; not compared if None.
            labels: Class of each image as the cache numbers it, -1 without one; not compared if
                None.
            label_sets: Classes of each image, where the cache has sets of them.
        """
        if hashes is None:
            hashes = np.fromiter(map(key_hash, keys), np.uint64, len(keys))
        positions = self._index.find(keys.tolist(), hashes)
        found = np.flatnonzero(positions >= 0)
        at = positions[found]
        self._seen[at] = True
        resized, relabeled = np.zeros((2, len(keys)), dtype=np.bool_)
        if sizes is not None:
            known, actual = sizes[found], np.asarray(self._source.sizes)[at]
            resized[found] = (known >= 0) & (actual >= 0) & (known != actual)
        if labels is not None and self._to_cache is not None:
            own, expected = self._to_cache[np.asarray(self._source.labels)[at]], labels[found]
            relabeled[found] = (own != -1) & (expected >= 0) & (own != expected)
            relabeled[found] |= self._other_sets(at, label_sets, found)
        return Joined(positions, resized, relabeled)

    def _other_sets(
        self, at: NDArray[np.int64], label_sets: LabelSets | None, found: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Return which images of the source have other known label sets, bool (N,)."""
        own = label_sets_of(self._source)
        if own is None or label_sets is None or self._to_cache is None:
            return np.zeros(len(at), dtype=np.bool_)
        return own.take(at).mapped(self._to_cache).differ(label_sets.take(found))

    def added(self) -> NDArray[np.signedinteger]:
        """Return the positions of the images of the source that were never found, ascending."""
        return np.flatnonzero(~self._seen).astype(position_dtype(len(self._seen)))


@dataclass
class NamedKeys:
    """Count of the keys of differing images, and the first few of them.

    ``f"{keys:missing}"`` is ``4 missing: a.jpg, b.jpg, c.jpg, …``.
    """

    count: int = 0
    names: list[str] = field(default_factory=list)

    def add(self, keys: NDArray[np.object_], allowed: Collection[str] = ()) -> None:
        """Add keys.

        Args:
            keys: The keys.
            allowed: Keys that are not counted.
        """
        named: Iterable[str] = keys.tolist()
        counted = [key for key in named if key not in allowed] if allowed else list(named)
        self.count += len(counted)
        self.names += counted[: _NAMES - len(self.names)]

    def __format__(self, what: str) -> str:
        more = ", …" if self.count > len(self.names) else ""
        named = f": {', '.join(self.names)}{more}" if self.names else ""
        return f"{self.count} {what}{named}"


def is_same_content(image: bytes | NDArray[np.uint8], digest: NDArray[np.uint8]) -> bool:
    """Return whether an image has a digest, uint8 (16,)."""
    return content_digest(image) == digest.tobytes()


def check_content(image: bytes | NDArray[np.uint8], digest: NDArray[np.uint8], key: str) -> None:
    """Compare an image with the digest of the one that the teachers were given.

    Args:
        image: The stored image.
        digest: Its digest in the cache, uint8 (16,).
        key: Its key, for the message.

    Raises:
        DataMismatch: The contents differ.
    """
    if not is_same_content(image, digest):
        raise DataMismatch(
            "an image is not the one that the teachers were given",
            where=key,
            expected=f"digest {digest.tobytes().hex()}",
            got=f"digest {content_digest(image).hex()}",
            hint="restore the original file",
        )
