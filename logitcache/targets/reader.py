"""Reader of targets: encoded units of one view, decoded into batches.

Zarr is indexed by whole units only: fetching single rows through it is a thousand times slower.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from logitcache.batch import DenseLogits, SparseLogits, TeacherLogits
from logitcache.cache.format.groups import FeatureGroup, TeacherGroup
from logitcache.cache.format.names import teacher_of
from logitcache.draws import Purpose, permutation
from logitcache.encoding.sparse import SparseEncoding
from logitcache.errors import UsageError
from logitcache.targets.feature_groups import decode_features, example_features, join_features
from logitcache.targets.temperature_notes import lossy_notes
from logitcache.targets.unit_cache import UnitCache
from logitcache.views.tokens import kept_tokens

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from numpy.typing import NDArray

    from logitcache.batch import Features
    from logitcache.cache.format.groups import Group
    from logitcache.cache.read.reader import Cache
    from logitcache.encoding.arrays import Encoded
    from logitcache.encoding.kinds import Encoding
    from logitcache.views.spec import View

__all__ = ["DecodedTargets", "TargetWindow", "TargetsReader", "concatenate"]

_LABEL = "label_logp"


@dataclass(frozen=True)
class DecodedTargets:
    """Teacher outputs for some rows, and activations of their layers.

    Attributes:
        teachers: By name.
        features: By ``<teacher>/<tap>``.
    """

    teachers: dict[str, TeacherLogits]
    features: dict[str, Features]


@dataclass(frozen=True)
class TargetWindow:
    """Teacher outputs for some units, encoded.

    Attributes:
        unit_rows: Rows of a unit of the window.
        units: Units in the order of the arrays, ascending.
        groups: Of teachers by name, and of taps by ``<teacher>/<tap>``.
        encoded: Arrays by the same names, (len(units) * unit_rows, ...).
        view: Which view it is of.
        hashes: Of the rows' keys, where some tokens are kept; None otherwise.
        answer_of: For each row of the window, the row whose output it gets; None for its own.
    """

    unit_rows: int
    units: tuple[int, ...]
    groups: Mapping[str, Group]
    encoded: dict[str, Encoded]
    view: View
    hashes: NDArray[np.uint64] | None = None
    answer_of: NDArray[np.int64] | None = None

    def gather(self, rows_B: NDArray[np.int64]) -> DecodedTargets:
        """Decode some rows, in their order."""
        slots = np.searchsorted(np.asarray(self.units), rows_B // self.unit_rows)
        positions = slots * self.unit_rows + rows_B % self.unit_rows
        if self.answer_of is not None:
            positions = self.answer_of[positions]
        gathered = DecodedTargets({}, {})
        for name, group in self.groups.items():
            arrays = {n: array[positions] for n, array in self.encoded[name].items()}
            if isinstance(group, FeatureGroup):
                tokens = self._kept_tokens(group, positions)
                gathered.features[name] = decode_features(group.encoding, arrays, tokens)
            else:
                gathered.teachers[name] = _decode(group.encoding, arrays)
        return gathered

    def _kept_tokens(
        self, group: FeatureGroup, positions: NDArray[np.int64]
    ) -> NDArray[np.int64] | None:
        encoding = group.encoding
        if encoding.kept is None:
            return None
        assert self.hashes is not None
        return kept_tokens(self.view, self.hashes[positions], encoding.patches, encoding.kept)


def _arrays_of(group: Group) -> list[str]:
    """Return what is read of a group: how it was encoded, and what sparse targets leave out."""
    names = list(group.encoding.specs())
    if isinstance(group, FeatureGroup) or not isinstance(group.encoding, SparseEncoding):
        return names
    return [*names, _LABEL] if _LABEL in group.optional else names


def _decode(encoding: Encoding, arrays: Encoded) -> TeacherLogits:
    if isinstance(encoding, SparseEncoding):
        sparse = encoding.decode(arrays)
        return SparseLogits(
            torch.from_numpy(sparse.class_ids),
            torch.from_numpy(sparse.log_probs),
            torch.from_numpy(sparse.tail),
            encoding.num_classes,
            torch.from_numpy(arrays[_LABEL].astype(np.float32)) if _LABEL in arrays else None,
        )
    return DenseLogits(torch.from_numpy(encoding.decode(arrays).log_probs))


def concatenate(parts: Sequence[DecodedTargets]) -> DecodedTargets:
    """Join the targets of neighboring windows."""
    first = parts[0]
    if len(parts) == 1:
        return first
    return DecodedTargets(
        {name: _join([part.teachers[name] for part in parts]) for name in first.teachers},
        {name: join_features([part.features[name] for part in parts]) for name in first.features},
    )


def _join(parts: Sequence[TeacherLogits]) -> TeacherLogits:
    first = parts[0]
    if isinstance(first, SparseLogits):
        sparse = [part for part in parts if isinstance(part, SparseLogits)]
        labels = [p.label_log_probs for p in sparse if p.label_log_probs is not None]
        return SparseLogits(
            torch.cat([part.class_ids for part in sparse]),
            torch.cat([part.log_probs for part in sparse]),
            torch.cat([part.tail for part in sparse]),
            first.num_classes,
            None if not labels else torch.cat(labels),
        )
    return DenseLogits(torch.cat([part.log_probs for part in parts]))


class TargetsReader:
    """Reads windows of a cache.

    Args:
        cache: The cache.
        teachers: Names of the teachers.
        features: Which taps, as ``<teacher>/<tap>``.
        shuffled: Whether each row gets the output for another row of its unit: the control in which
            targets must not help.
        seed: Of that shuffling.
    """

    def __init__(
        self,
        cache: Cache,
        teachers: Sequence[str],
        features: Sequence[str] = (),
        *,
        shuffled: bool = False,
        seed: int = 0,
    ) -> None:
        self._cache = cache
        self._groups: dict[str, Group] = {name: cache.teacher(name) for name in teachers}
        self._groups |= {name: cache.tap(name) for name in features}
        self._shuffled = shuffled
        self._seed = seed
        self._held: dict[str, tuple[str, int, Encoded]] = {}
        self._readable = UnitCache(cache.readable_unit, cache.unit_rows)
        self._key_hashes = UnitCache(partial(cache.sample_unit, "hash"), cache.unit_rows)

    @property
    def num_classes(self) -> int | None:
        """C of the teachers, None without any.

        Raises:
            UsageError: They have different numbers of classes.
        """
        found = {
            name: group.num_classes
            for name, group in self._groups.items()
            if isinstance(group, TeacherGroup)
        }
        if len(set(found.values())) > 1:
            raise UsageError(
                "these teachers have different numbers of classes",
                where=self._cache.url,
                got=", ".join(f"{name} {count}" for name, count in found.items()),
                hint="learn from some of them only",
            )
        return next(iter(found.values()), None)

    @property
    def block_rows(self) -> int:
        """U: rows that are mixed with each other, if any are, are in one block."""
        return self._cache.unit_rows

    @property
    def unit_rows(self) -> int:
        """Rows of the smallest unit that is read; divides U."""
        return min([self.block_rows, *(group.unit_rows for group in self._groups.values())])

    @property
    def row_bytes(self) -> int:
        """Bytes that a row of a window takes in memory."""
        return sum(_row_bytes(group) for group in self._groups.values())

    @property
    def held_bytes(self) -> int:
        """Bytes of the larger units of which a window of the smallest ones is cut."""
        large = [group for group in self._groups.values() if group.unit_rows > self.unit_rows]
        return sum(group.unit_rows * _row_bytes(group) for group in large)

    @property
    def features(self) -> dict[str, Features]:
        """An example of one row of every tap."""
        return {
            name: example_features(group.encoding)
            for name, group in self._groups.items()
            if isinstance(group, FeatureGroup)
        }

    def lossy_notes(self, temperature: float, teachers: Collection[str] | None = None) -> list[str]:
        """Return notes on targets that are used at a temperature; on all by default."""
        groups = {n: group for n, group in self._groups.items() if isinstance(group, TeacherGroup)}
        records = self._cache.manifest.teachers
        measured = {name: found for name in groups if (found := records[name].fidelity)}
        asked = groups.keys() if teachers is None else teachers
        return lossy_notes(groups, measured, dict.fromkeys(asked, temperature))

    def partners(self, view_id: str) -> UnitCache:
        """Return the row that each row is mixed with, by unit; see :meth:`.Cache.partners`."""
        return UnitCache(partial(self._cache.unit_partners, view_id), self._cache.unit_rows)

    @property
    def provenance(self) -> dict[str, Any]:
        """Where targets come from, as JSON values: the cache, its revision, and its teachers."""
        manifest, revision = self._cache.manifest, self._cache.revision
        names = sorted({teacher_of(group.name) for group in self._groups.values()})
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
        """Read some units of one view, whole.

        Args:
            view: Which view.
            units: Their numbers, ascending.
            unit_rows: Rows of each: :attr:`unit_rows`, or a multiple of it that divides U.
        """
        encoded = {
            name: self._read(name, group, view.id, units, unit_rows)
            for name, group in self._groups.items()
        }
        return TargetWindow(
            unit_rows=unit_rows,
            units=units,
            groups=self._groups,
            encoded=encoded,
            view=view,
            hashes=self._hashes(units, unit_rows),
            answer_of=self._permuted(units, unit_rows) if self._shuffled else None,
        )

    def _read(
        self, name: str, group: Group, view_id: str, units: Sequence[int], unit_rows: int
    ) -> Encoded:
        """Read rows of a group, whose own units may be smaller or larger than the window's."""
        arrays = _arrays_of(group)
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

    def _whole(self, name: str, group: Group, view_id: str, unit: int) -> Encoded:
        """Return a unit of a group, kept until another one of it is requested."""
        held = self._held.get(name)
        if held is not None and held[:2] == (view_id, unit):
            return held[2]
        read = self._cache.read_units(group.name, view_id, [unit], _arrays_of(group))
        self._held[name] = (view_id, unit, read)
        return read

    def _hashes(self, units: Sequence[int], unit_rows: int) -> NDArray[np.uint64] | None:
        taps = [group for group in self._groups.values() if isinstance(group, FeatureGroup)]
        if all(group.encoding.kept is None for group in taps):
            return None
        rows = np.concatenate([np.arange(u * unit_rows, (u + 1) * unit_rows) for u in units])
        return self._key_hashes.take(rows)

    def _permuted(self, units: Sequence[int], unit_rows: int) -> NDArray[np.int64]:
        """Permute the readable rows of each unit, the same way in every epoch."""
        answer_of = np.arange(len(units) * unit_rows, dtype=np.int64)
        for slot, unit in enumerate(units):
            rows = np.arange(unit * unit_rows, (unit + 1) * unit_rows)
            here = np.flatnonzero(self._readable.take(rows)) + slot * unit_rows
            order = permutation(self._seed, len(here), draw=unit, purpose=Purpose.SHUFFLED_TARGETS)
            answer_of[here] = here[order]
        return answer_of


def _row_bytes(group: Group) -> int:
    specs = group.specs()
    return sum(specs[name].row_bytes for name in _arrays_of(group))
