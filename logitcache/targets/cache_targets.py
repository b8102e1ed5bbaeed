"""A sealed cache with access to the targets of any rows, for scripts of users.

:func:`open_cache` is the one of the package's namespace. The modules of this package open caches
with :mod:`logitcache.cache.read.reader`, which knows neither images nor batches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from logitcache.cache.read import reader
from logitcache.cache.read.shard_cache import DEFAULT_COPY_BYTES
from logitcache.cache.read.signature import signed_revision
from logitcache.cache.store.open import locate

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from logitcache.batch import TargetBatch
    from logitcache.cache.format.ledger import Revision
    from logitcache.cache.format.manifest import Manifest
    from logitcache.cache.read.shard_cache import ShardCache
    from logitcache.cache.store.base import Location
    from logitcache.data.class_map import ClassMaps
    from logitcache.targets.row_targets import RowTargets

__all__ = ["Cache", "open_cache"]


class Cache(reader.Cache):
    """A sealed cache, with the targets of any rows.

    Made by :func:`open_cache`. Instances can be pickled; they hold no open file.
    """

    def __init__(
        self,
        location: Location,
        manifest: Manifest,
        revision: Revision,
        copies: ShardCache | None = None,
    ) -> None:
        super().__init__(location, manifest, revision, copies)
        self._row_targets: dict[tuple[Any, ...], RowTargets] = {}

    @classmethod
    def of(cls, sealed: reader.Cache) -> Cache:
        """Return the same cache with access to its targets."""
        return cls(sealed._location, sealed.manifest, sealed.revision, sealed._copies)

    def targets(
        self,
        rows: Sequence[int] | Sequence[str] | NDArray[Any] | Tensor,
        view: int | str = 0,
        *,
        teachers: Sequence[str] | None = None,
        features: Sequence[str] = (),
        class_map: ClassMaps | None = None,
    ) -> TargetBatch:
        """Return the targets of some images in one view, on the CPU, in the given order.

        Whole units are read and kept in memory, up to 1 GiB for each selection of teachers and
        layers, so rows in any order are fast once their units are read. To find images by their
        keys, the keys of all images are read once.

        Args:
            rows: Row numbers of the cache, or keys of the images; rows may be repeated.
            view: Number of the view in :attr:`views`, its id, or the beginning of its id.
            teachers: Names of the teachers; all teachers by default.
            features: Layers with cached features, as ``<teacher>/<tap>``.
            class_map: Class of the student for classes of the teachers, as for :func:`.loader`.

        Returns:
            A batch of B rows. Labels are those of the cache, -1 if it has none.

        Raises:
            UsageError: There is no such image, view, teacher or layer; or the image is excluded, or
                could not be decoded when the cache was computed.
            CacheDamaged: An object is missing or has changed.
        """
        # imports torch, which a script that only inspects a cache does not need
        from logitcache.targets.row_targets import RowTargets

        names = None if teachers is None else tuple(teachers)
        key = (names, tuple(features), repr(class_map))
        if key not in self._row_targets:
            self._row_targets[key] = RowTargets.of(self, teachers, features, class_map=class_map)
        found = self._row_targets[key]
        return found.batch(found.rows_of(rows), found.view_id(view))


def open_cache(
    url: str | os.PathLike[str] | Location,
    *,
    local_copy: str | os.PathLike[str] | None = None,
    local_copy_bytes: int = DEFAULT_COPY_BYTES,
    revision: str | None = None,
    signed_by: str | os.PathLike[str] | None = None,
) -> Cache:
    """Open a sealed cache for reading.

    Args:
        url: A folder, or a URL; see :mod:`logitcache.cache.store.base`.
        local_copy: Folder of the local copies of a remote cache's shards; a folder below the user's
            cache folder by default.
        local_copy_bytes: Largest size of that folder; 0 to keep no copies.
        revision: sha256 of the revision that it must have, or the first 12 digits or more.
        signed_by: File with the public key that has to have signed the current revision.

    Raises:
        CacheError: There is no cache.
        UnsupportedFormat: It was written by a newer logitcache.
        CacheUnsealed: It was never sealed.
        CacheDamaged: Its manifest is not the one that was sealed, or it has another revision.
        SignatureError: It is not signed by the key, or differs from what was signed.
    """
    if signed_by is not None:  # before anything else of the cache is read
        revision = signed_revision(locate(url), signed_by, revision)
    return Cache.of(
        reader.open_cache(
            url, local_copy=local_copy, local_copy_bytes=local_copy_bytes, revision=revision
        )
    )
