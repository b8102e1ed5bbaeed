"""Targets of single rows in any order, decoded from whole units that are kept in memory.

:mod:`.reader` reads the windows of an epoch, one after the other. Here the caller decides which
rows come next, so the most recently used units stay in memory, up to a number of bytes.

Shapes: B rows, U rows of a unit.
"""

from __future__ import annotations

from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from logitcache.batch import TargetBatch
from logitcache.cache.format.names import Status
from logitcache.cache.read.view_selection import choose_views
from logitcache.data.lookup import KeyIndex, key_hash
from logitcache.errors import UsageError, first_of
from logitcache.targets.classes.class_space import ClassSpace
from logitcache.targets.classes.label_targets import CachedLabelSets, mixed_sets
from logitcache.targets.decoding.batch_parts import decode_rows, visible_patches
from logitcache.targets.mixing_pairs import shares_of
from logitcache.targets.selection import DEFAULT_TARGET_MEMORY, Targets
from logitcache.targets.unit_cache import UnitCache

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from logitcache.cache.format.groups import RowGroup
    from logitcache.cache.read.reader import Cache
    from logitcache.data.class_map import ClassMaps
    from logitcache.encoding.arrays import Encoded
    from logitcache.targets.decoding.batch_parts import DecodedTargets
    from logitcache.views.spec import View

__all__ = ["RowTargets"]

_OK = int(Status.OK)  # numpy compares an integer faster than a member
_WITHOUT_TARGETS = {
    Status.PADDING: "there is no image in this row of the cache",
    Status.UNREADABLE: "this image has no targets: it could not be decoded when the cache was "
    "computed",
    Status.WITHDRAWN: "this image is excluded from training",
}


class RowTargets:
    """Reader of the targets of any rows of a cache; thread-safe.

    A copy in another process starts with no units in memory.

    Args:
        cache: The cache.
        groups: Groups of teachers by name, and of layers by ``<teacher>/<tap>``.
        views: Views that all of these groups have, by id.
        memory: Maximum memory for encoded targets, in bytes; at least one unit of each group is
            kept. Status, labels and key hashes take 21 bytes per row more, and mixing partners 8
            per row and view.
        classes: Classes of the student; those of the cache by default.
    """

    def __init__(
        self,
        cache: Cache,
        groups: Mapping[str, RowGroup],
        views: Mapping[str, View],
        memory: int = DEFAULT_TARGET_MEMORY,
        classes: ClassSpace | None = None,
    ) -> None:
        self._cache = cache
        self._classes = classes or ClassSpace()
        self._groups = dict(groups)
        self._views = dict(views)
        self._memory = memory
        self._numbers = {view_id: number for number, view_id in enumerate(views)}
        self._arrays = {
            name: {array: self._array(group, array) for array in group.batch_arrays}
            for name, group in groups.items()
        }
        self._status = self._sample(partial(_status, cache))
        self._labels = self._sample(partial(cache.sample_unit, "label"))
        self._label_sets = CachedLabelSets.of(cache)
        if self._label_sets is not None:
            self._label_sets.units.keep = max(1, len(cache.units()))
        self._hashes = self._sample(partial(cache.sample_unit, "hash"))
        self._partners = {
            view_id: self._sample(partial(cache.unit_partners, view_id))
            for view_id, view in views.items()
            if view.mixing is not None
        }

    @classmethod
    def of(
        cls,
        cache: Cache,
        teachers: Sequence[str] | None = None,
        features: Sequence[str] = (),
        *,
        memory: int = DEFAULT_TARGET_MEMORY,
        class_map: ClassMaps | None = None,
    ) -> RowTargets:
        """Return the targets of some teachers and layers; of all teachers by default.

        Raises:
            UsageError: An unknown teacher or layer, no view that all of them have, or a class map
                that does not fit.
        """
        found = Targets.of(cache, teachers, features, class_map=class_map)
        return cls(cache, found.reader.groups, found.views, memory, found.reader.classes)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_keys"}

    @property
    def views(self) -> list[str]:
        """Ids of the views that all teachers and layers have."""
        return list(self._views)

    @property
    def kept_rows(self) -> int:
        """Number of rows of one view whose targets fit into the memory."""
        return self._memory // max(1, sum(group.row_bytes for group in self._groups.values()))

    def view(self, view_id: str) -> View:
        """Return one of the views."""
        return self._views[view_id]

    def view_id(self, name: int | str) -> str:
        """Return the id of a view from its number in the cache, its id, or the beginning of it.

        Raises:
            UsageError: There is no such view, or a teacher or layer lacks outputs in it.
        """
        where = self._cache.url
        try:
            chosen = choose_views(list(self._cache.views), [str(name)])
        except UsageError as error:
            raise UsageError(
                error.what, where=where, expected=error.expected, got=error.got, hint=error.hint
            ) from None
        if len(chosen) != 1:
            raise UsageError(
                "one view is needed here",
                where=where,
                expected="the number or the id of a view",
                got=f"{name}: {len(chosen)} views",
            )
        if chosen[0] not in self._views:
            raise UsageError(
                "some of these teachers and layers lack outputs in this view",
                where=where,
                expected=f"a view among {first_of(self.views)}",
                got=f"{chosen[0]}; teachers and layers: {first_of(list(self._groups))}",
                hint="choose another view, choose teachers and layers that have it, or precompute "
                "the missing ones",
            )
        return chosen[0]

    def rows_of(self, rows: Sequence[int] | Sequence[str] | NDArray[Any] | Tensor) -> NDArray[Any]:
        """Return the rows of images that are given by row number or by key, int64 (B,).

        Raises:
            UsageError: There is no such image, or it is excluded or was unreadable.
        """
        given = np.atleast_1d(np.asarray(rows))
        if given.size and given.dtype.kind in "UO":
            numbers = self._find(given.tolist())
        elif given.ndim == 1 and (given.dtype.kind in "iu" or not given.size):
            numbers = given.astype(np.int64)
        else:
            raise UsageError(
                "rows have to be row numbers or keys of images",
                where=self._cache.url,
                expected="a sequence of integers, or a sequence of strings",
                got=f"{given.dtype} of shape {given.shape}",
            )
        self._check(numbers)
        return numbers

    def decoded(self, rows_B: NDArray[np.int64], view_id: str) -> DecodedTargets:
        """Return the outputs of teachers and layers for some rows.

        Args:
            rows_B: Rows of readable images.
            view_id: Id of one of the views.
        """
        number = self._numbers[view_id]
        encoded: dict[str, Encoded] = {}
        for name, arrays in self._arrays.items():
            # all views count as one long array, so that their units share one memory
            group = self._groups[name]
            places_B = rows_B + number * self._units(group) * group.unit_rows
            encoded[name] = {array: units.take(places_B) for array, units in arrays.items()}
        partial_maps = any(group.kept_patches is not None for group in self._groups.values())
        hashes_B = self._hashes.take(rows_B) if partial_maps else None
        lenses = self._classes.logits_lenses
        return decode_rows(self._groups, encoded, self._views[view_id], hashes_B, lenses=lenses)

    def batch(self, rows_B: NDArray[np.int64], view_id: str) -> TargetBatch:
        """Return the targets of some rows, with the labels of the cache in the student's classes.

        Args:
            rows_B: Rows of readable images.
            view_id: Id of one of the views.
        """
        view, decoded = self._views[view_id], self.decoded(rows_B, view_id)
        partner_labels = partners_B = lam = None
        if view.mixing is not None:
            partners_B = self._partners[view_id].take(rows_B)
            self._check_partners(rows_B, partners_B, view_id)
            partner_labels = self._labels_of(partners_B)
            lam = shares_of(view, self._hashes.take(rows_B), alone_B=partners_B == rows_B)
        return TargetBatch(
            rows=torch.from_numpy(rows_B),
            labels=self._labels_of(rows_B),
            teachers=decoded.teachers,
            partner_labels=partner_labels,
            lam=lam,
            features=decoded.features,
            label_sets=self._sets_of(rows_B, partners_B, lam),
            visible=visible_patches([view], lambda: self._hashes.take(rows_B)),
        )

    def _labels_of(self, rows_B: NDArray[np.int64]) -> Tensor:
        """Return the labels of some rows in the classes of the student, int64 (B,)."""
        labels_B, table = self._labels.take(rows_B), self._classes.label_table
        mapped_B = labels_B if table is None else table[labels_B]
        return torch.from_numpy(mapped_B.astype(np.int64))

    def _sets_of(
        self, rows_B: NDArray[np.int64], partners_B: NDArray[np.int64] | None, lam_B: Tensor | None
    ) -> Tensor | None:
        """Return the label sets of some rows as targets, float32 (B, C); None without them."""
        if self._label_sets is None:
            return None
        table = self._classes.label_table
        own, partners = (
            None if rows is None else self._label_sets.take(rows) for rows in (rows_B, partners_B)
        )
        assert own is not None
        if table is not None:
            own, partners = own.merged(table), None if partners is None else partners.merged(table)
        classes = len(self._classes.names or self._cache.class_names)
        return mixed_sets(own, partners, lam_B, classes)

    def _units(self, group: RowGroup) -> int:
        """Return the number of units of a view."""
        return -(-self._cache.rows_end // group.unit_rows)

    def _array(self, group: RowGroup, array: str) -> UnitCache:
        """Return the values of an array of a group in all views, one view after the other."""
        read = partial(_unit, self._cache, group.name, array, self.views, self._units(group))
        found = UnitCache(read, group.unit_rows)
        found.keep = max(1, self.kept_rows // group.unit_rows)
        return found

    def _sample(self, read: Callable[[int], NDArray[Any]]) -> UnitCache:
        """Return values of the samples; small, so all of them may stay in memory."""
        found = UnitCache(read, self._cache.unit_rows)
        found.keep = max(1, len(self._cache.units()))
        return found

    @cached_property
    def _keys(self) -> tuple[NDArray[np.object_], KeyIndex]:
        """The keys of all rows, and an index of them."""
        keys = self._cache.samples.keys
        return keys, KeyIndex(keys)  # type: ignore[arg-type]  # an array is a sequence of keys

    def _find(self, wanted: list[Any]) -> NDArray[np.int64]:
        """Return the rows of some keys.

        Raises:
            UsageError: The cache does not have one of them.
        """
        texts = [str(key) for key in wanted]
        keys, index = self._keys
        hashes = np.fromiter(map(key_hash, texts), np.uint64, len(texts))
        rows = index.find(texts, hashes)
        unknown = [key for key, row in zip(texts, rows, strict=True) if row < 0 or not key]
        if unknown:
            example = keys[int(self._cache.samples.rows[0])]
            raise UsageError(
                f"{len(unknown)} of {len(texts)} images are not in this cache",
                where=self._cache.url,
                expected=f"keys of images, for example {example!r}",
                got=first_of([repr(key) for key in unknown], 3),
                hint="give the path of an image below the data folder, as the cache has it",
            )
        return rows

    def _check(self, rows_B: NDArray[np.int64]) -> None:
        """Check that rows have targets.

        Raises:
            UsageError: One is out of range, padding, excluded or was unreadable.
        """
        end = self._cache.rows_end
        outside = rows_B[(rows_B < 0) | (rows_B >= end)]
        if len(outside):
            raise UsageError(
                "row out of range",
                where=self._cache.url,
                expected=f"0 to {end - 1}",
                got=first_of([str(row) for row in outside.tolist()]),
            )
        status_B = self._status.take(rows_B)
        if (status_B == _OK).all():
            return
        for status, what in _WITHOUT_TARGETS.items():
            bad = rows_B[status_B == status].tolist()
            if bad:
                raise UsageError(
                    what,
                    where=self._cache.url,
                    got=first_of([f"row {row}" for row in bad]),
                    hint="leave these rows out; the rows with targets are in "
                    "cache.samples.readable",
                )

    def _check_partners(
        self, rows_B: NDArray[np.int64], partners_B: NDArray[np.int64], view_id: str
    ) -> None:
        """Check that no mixing partner is excluded.

        Raises:
            UsageError: One is.
        """
        bad = rows_B[self._status.take(partners_B) != _OK].tolist()
        if bad:
            raise UsageError(
                "this image is mixed with an image that is excluded from training",
                where=f"{self._cache.url}, view {view_id}",
                got=first_of([f"row {row}" for row in bad]),
                hint="leave these rows out in this view, or choose a view without mixing",
            )


def _unit(
    cache: Cache, group: str, array: str, views: Sequence[str], units: int, number: int
) -> NDArray[Any]:
    """Read one array of a unit; units are numbered view by view."""
    view, unit = divmod(number, units)
    return cache.read_units(group, views[view], [unit], [array])[array]


def _status(cache: Cache, unit: int) -> NDArray[np.uint8]:
    """Return the status of the rows of a unit, uint8 (U,), with exclusions applied."""
    if cache.withdrawn:
        return cache.samples_of(unit).status
    status: NDArray[np.uint8] = cache.sample_unit("status", unit)
    return status
