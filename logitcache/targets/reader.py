"""Reader of targets: encoded units of one view, decoded into batches.

Whole units are read, since reading single rows through Zarr is a thousand times slower.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from logitcache.cache.format.groups import FeatureGroup, TeacherGroup, groups_of
from logitcache.draws import Purpose, permutation
from logitcache.errors import UsageError
from logitcache.targets.classes.class_space import ClassSpace
from logitcache.targets.classes.outside_mass import OutsideShare, outside_shares
from logitcache.targets.decoding.batch_parts import (
    DecodedTargets,
    concatenate,
    decode_rows,
    device_decoders,
    example_logits,
)
from logitcache.targets.decoding.feature_groups import example_features
from logitcache.targets.temperature_notes import lossy_notes
from logitcache.targets.unit_cache import UnitCache

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from numpy.typing import NDArray

    from logitcache.batch import Features, TeacherLogits
    from logitcache.cache.format.groups import RowGroup
    from logitcache.cache.format.teacher_lock import LockedFields
    from logitcache.cache.read.reader import Cache
    from logitcache.encoding.arrays import Encoded
    from logitcache.targets.classes.class_lens import LogitsLens
    from logitcache.targets.decoding.batch_parts import Decoder
    from logitcache.views.spec import View

__all__ = ["DecodedTargets", "TargetWindow", "TargetsReader", "concatenate"]


@dataclass(frozen=True)
class TargetWindow:
    """Encoded teacher outputs of some units in memory.

    Attributes:
        unit_rows: Number of rows per unit of the window.
        units: Numbers of the units in the order of the arrays, ascending.
        groups: Groups of teachers by name, and of layers by ``<teacher>/<tap>``.
        encoded: Arrays by the same names, (len(units) * unit_rows, ...).
        view: The view of the outputs.
        hashes: Key hashes of the rows if only some tokens are cached; None otherwise.
        answer_of: For each row of the window, the row whose output it gets; None for its own.
        decoders: Decoders for the device of a batch, by name of the group; not all have one.
        lenses: Functions that map the outputs of teachers to the classes of the student, by name.
    """

    unit_rows: int
    units: tuple[int, ...]
    groups: Mapping[str, RowGroup]
    encoded: dict[str, Encoded]
    view: View
    hashes: NDArray[np.uint64] | None = None
    answer_of: NDArray[np.int64] | None = None
    decoders: Mapping[str, Decoder] = field(default_factory=dict)
    lenses: Mapping[str, LogitsLens] = field(default_factory=dict)

    def gather(self, rows_B: NDArray[np.int64], *, on_device: bool = False) -> DecodedTargets:
        """Decode some rows, in the given order.

        Args:
            rows_B: Row numbers.
            on_device: Whether groups with a decoder for the device of the batch stay encoded.
        """
        slots = np.searchsorted(np.asarray(self.units), rows_B // self.unit_rows)
        positions = slots * self.unit_rows + rows_B % self.unit_rows
        if self.answer_of is not None:
            positions = self.answer_of[positions]
        encoded = {
            name: {n: array[positions] for n, array in self.encoded[name].items()}
            for name in self.groups
        }
        hashes_B = None if self.hashes is None else self.hashes[positions]
        decoders = self.decoders if on_device else None
        return decode_rows(self.groups, encoded, self.view, hashes_B, decoders, self.lenses)


class TargetsReader:
    """Reader of windows of a cache.

    Args:
        cache: The cache.
        teachers: Names of the teachers.
        features: Layers with cached features, as ``<teacher>/<tap>``.
        shuffled: Whether each row gets the output of another row of its unit, as a control
            experiment.
        seed: Random seed of that shuffling.
        classes: Classes of the student; those of the teachers by default.

    Attributes:
        groups: Groups of the teachers by name, and of the layers by ``<teacher>/<tap>``.
        classes: Classes of the student.
    """

    def __init__(
        self,
        cache: Cache,
        teachers: Sequence[str],
        features: Sequence[str] = (),
        *,
        shuffled: bool = False,
        seed: int = 0,
        classes: ClassSpace | None = None,
    ) -> None:
        self._cache = cache
        self.classes = classes or ClassSpace()
        self.groups: dict[str, RowGroup] = {name: cache.teacher(name) for name in teachers}
        self.groups |= {name: cache.tap(name) for name in features}
        self._decoders = device_decoders(self.groups)
        self._shuffled = shuffled
        self._seed = seed
        self._held: dict[str, tuple[str, int, Encoded]] = {}
        self._readable = UnitCache(cache.readable_unit, cache.unit_rows)
        self._key_hashes = UnitCache(partial(cache.sample_unit, "hash"), cache.unit_rows)

    @property
    def num_classes(self) -> int | None:
        """Number of classes of the targets, None without teachers.

        Raises:
            UsageError: The teachers have different numbers of classes.
        """
        lenses = self.classes.lenses
        found = {
            name: lenses[name].classes if name in lenses else group.num_classes
            for name, group in groups_of(self.groups, TeacherGroup).items()
        }
        if len(set(found.values())) > 1:
            raise UsageError(
                "these teachers have different numbers of classes",
                where=self._cache.url,
                got=", ".join(f"{name} {count}" for name, count in found.items()),
                hint="choose teachers with the same number of classes, or map their classes to "
                "those of the student by a class map",
            )
        return next(iter(found.values()), None)

    @property
    def rows_end(self) -> int:
        """Number of rows of the cache, padding included."""
        return self._cache.rows_end

    @property
    def block_rows(self) -> int:
        """Number of rows per block; images are mixed with images of the same block only."""
        return self._cache.unit_rows

    @property
    def unit_rows(self) -> int:
        """Number of rows of the smallest unit that is read; divides :attr:`block_rows`."""
        return min([self.block_rows, *(group.unit_rows for group in self.groups.values())])

    @property
    def row_bytes(self) -> int:
        """Number of bytes of a row of a window in memory."""
        return sum(group.row_bytes for group in self.groups.values())

    @property
    def held_bytes(self) -> int:
        """Number of bytes of the larger units that are kept in memory to cut windows from them."""
        large = [group for group in self.groups.values() if group.unit_rows > self.unit_rows]
        return sum(group.unit_rows * group.row_bytes for group in large)

    @property
    def features(self) -> dict[str, Features]:
        """An example of one row of the features of every layer."""
        return {
            name: example_features(group.encoding)
            for name, group in groups_of(self.groups, FeatureGroup).items()
        }

    @property
    def logits(self) -> dict[str, TeacherLogits]:
        """An example of one row of the outputs of every teacher, in the classes of the student."""
        groups, lenses = groups_of(self.groups, TeacherGroup), self.classes.logits_lenses
        examples = {name: example_logits(group.encoding) for name, group in groups.items()}
        return {n: lenses[n](row) if n in lenses else row for n, row in examples.items()}

    def lossy_notes(self, temperature: float, teachers: Collection[str] | None = None) -> list[str]:
        """Return notes on the loss of sparse targets at a temperature; of all by default."""
        groups = groups_of(self.groups, TeacherGroup)
        records = self._cache.manifest.teachers
        measured = {name: found for name in groups if (found := records[name].fidelity)}
        names = groups.keys() if teachers is None else teachers
        return lossy_notes(groups, measured, dict.fromkeys(names, temperature))

    def outside_shares(self, view_id: str) -> list[OutsideShare]:
        """Return the classes and the probability of teachers outside of their class maps."""
        return outside_shares(self._cache, self.classes, view_id)

    def partners(self, view_id: str) -> UnitCache:
        """Return the row that each row is mixed with, by unit; see :meth:`.Cache.partners`."""
        return UnitCache(partial(self._cache.unit_partners, view_id), self._cache.unit_rows)

    def lock_of(self, name: str) -> LockedFields:
        """Return what the cache has of the teacher of a group.

        Args:
            name: Name of the group: a teacher, or ``<teacher>/<tap>``.
        """
        return self._cache.manifest.teachers[self.groups[name].teacher].locked

    @property
    def provenance(self) -> dict[str, Any]:
        """Origin of the targets as JSON values: the cache, its revision and its teachers."""
        manifest, revision = self._cache.manifest, self._cache.revision
        names = sorted({group.teacher for group in self.groups.values()})
        locks = {name: manifest.teachers[name].locked for name in names}
        return {
            "url": self._cache.url,
            "revision": revision.number,
            "revision_sha256": self._cache.revision_sha256,
            "fingerprint": manifest.data.fingerprint,
            "description": manifest.data.description,
            "teachers": {
                name: {
                    "architecture": locked.architecture or "unknown",
                    "weights_sha256": locked.weights_sha256,
                }
                for name, locked in locks.items()
            },
        }

    def read(self, view: View, units: tuple[int, ...], unit_rows: int) -> TargetWindow:
        """Read some whole units of one view.

        Args:
            view: The view.
            units: Numbers of the units, ascending.
            unit_rows: Number of rows per unit: :attr:`unit_rows`, or a multiple of it that divides
                :attr:`block_rows`.
        """
        encoded = {
            name: self._read(name, group, view.id, units, unit_rows)
            for name, group in self.groups.items()
        }
        return TargetWindow(
            unit_rows=unit_rows,
            units=units,
            groups=self.groups,
            encoded=encoded,
            view=view,
            hashes=self._hashes(units, unit_rows),
            answer_of=self._permuted(units, unit_rows) if self._shuffled else None,
            decoders=self._decoders,
            lenses=self.classes.logits_lenses,
        )

    def _read(
        self, name: str, group: RowGroup, view_id: str, units: Sequence[int], unit_rows: int
    ) -> Encoded:
        """Read rows of a group, whose units may be smaller or larger than those of the window."""
        arrays = group.batch_arrays
        if group.unit_rows <= unit_rows:
            each = unit_rows // group.unit_rows
            own = [own for unit in units for own in range(unit * each, (unit + 1) * each)]
            return self._cache.read_units(group.name, view_id, own, arrays)
        each = group.unit_rows // unit_rows
        parts = []
        for unit in units:
            whole = self._whole(name, group, view_id, unit // each)
            start = unit % each * unit_rows
            parts.append({n: whole[n][start : start + unit_rows] for n in arrays})
        return {n: np.concatenate([part[n] for part in parts]) for n in arrays}

    def _whole(self, name: str, group: RowGroup, view_id: str, unit: int) -> Encoded:
        """Return a unit of a group, kept in memory until another unit of the group is requested.

        Units of one block follow each other in an epoch, so each large unit is read once.
        """
        held = self._held.get(name)
        if held is not None and held[:2] == (view_id, unit):
            return held[2]
        read = self._cache.read_units(group.name, view_id, [unit], group.batch_arrays)
        self._held[name] = (view_id, unit, read)
        return read

    def _hashes(self, units: Sequence[int], unit_rows: int) -> NDArray[np.uint64] | None:
        if all(group.kept_patches is None for group in self.groups.values()):
            return None
        rows = np.concatenate([np.arange(u * unit_rows, (u + 1) * unit_rows) for u in units])
        return self._key_hashes.take(rows)

    def _permuted(self, units: Sequence[int], unit_rows: int) -> NDArray[np.int64]:
        """Return the permutation of the readable rows of each unit, the same in every epoch."""
        answer_of = np.arange(len(units) * unit_rows, dtype=np.int64)
        for slot, unit in enumerate(units):
            rows = np.arange(unit * unit_rows, (unit + 1) * unit_rows)
            here = np.flatnonzero(self._readable.take(rows)) + slot * unit_rows
            order = permutation(self._seed, len(here), draw=unit, purpose=Purpose.SHUFFLED_TARGETS)
            answer_of[here] = here[order]
        return answer_of
