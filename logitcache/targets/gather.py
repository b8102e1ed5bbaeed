"""Encoded units of one view in memory, and batches gathered out of them.

Zarr is indexed by whole units only: fetching single rows through it is a thousand times slower.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from logitcache.batch import DenseLogits, SparseLogits, TeacherLogits
from logitcache.draws import Purpose, permutation
from logitcache.encoding.sparse import SparseEncoding
from logitcache.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from logitcache.cache.groups import TeacherGroup
    from logitcache.cache.reader import Cache
    from logitcache.encoding.arrays import Encoded
    from logitcache.encoding.choice import Encoding

__all__ = ["TargetWindow", "TargetsReader", "concatenate"]

_LABEL = "label_logp"


@dataclass(frozen=True)
class TargetWindow:
    """What teachers said of some units, encoded.

    Attributes:
        unit_rows: U.
        units: Units in the order of the arrays, ascending.
        encoded: Arrays by teacher, (len(units) * U, ...).
        encodings: By teacher.
        answer_of: For each row of the window, the row whose answer it gets; None for its own.
    """

    unit_rows: int
    units: tuple[int, ...]
    encoded: dict[str, Encoded]
    encodings: dict[str, Encoding]
    answer_of: NDArray[np.int64] | None = None

    def gather(self, rows_B: NDArray[np.int64]) -> dict[str, TeacherLogits]:
        """Decode some rows, in their order."""
        slots = np.searchsorted(np.asarray(self.units), rows_B // self.unit_rows)
        positions = slots * self.unit_rows + rows_B % self.unit_rows
        if self.answer_of is not None:
            positions = self.answer_of[positions]
        return {
            name: _decode(self.encodings[name], {n: a[positions] for n, a in arrays.items()})
            for name, arrays in self.encoded.items()
        }


def _arrays_of(group: TeacherGroup) -> list[str]:
    """Return what is read of a teacher: how it was encoded, and what sparse targets leave out."""
    names = list(group.encoding.specs())
    sparse = isinstance(group.encoding, SparseEncoding)
    return [*names, _LABEL] if sparse and _LABEL in group.optional else names


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


def concatenate(parts: Sequence[dict[str, TeacherLogits]]) -> dict[str, TeacherLogits]:
    """Join the targets of neighbouring windows."""
    if len(parts) == 1:
        return parts[0]
    return {name: _join([part[name] for part in parts]) for name in parts[0]}


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
        teachers: Whose answers.
        shuffled: Whether each row gets the answer to another row of its unit: the control in which
            targets must not help.
        seed: Of that shuffling.
    """

    def __init__(
        self, cache: Cache, teachers: Sequence[str], *, shuffled: bool = False, seed: int = 0
    ) -> None:
        self._cache = cache
        self._groups = {name: cache.teacher(name) for name in teachers}
        self._shuffled = shuffled
        self._seed = seed

    @property
    def num_classes(self) -> int | None:
        """C of the teachers, None without any.

        Raises:
            UsageError: They have different numbers of classes.
        """
        found = {name: group.num_classes for name, group in self._groups.items()}
        if len(set(found.values())) > 1:
            raise UsageError(
                "these teachers have different numbers of classes",
                where=self._cache.url,
                got=", ".join(f"{name} {count}" for name, count in found.items()),
                hint="learn from some of them only",
            )
        return next(iter(found.values()), None)

    @property
    def unit_bytes(self) -> int:
        """Bytes that one unit of one view takes in memory."""
        sizes = (
            group.specs()[name].row_bytes
            for group in self._groups.values()
            for name in _arrays_of(group)
        )
        return self._cache.unit_rows * sum(sizes)

    def partners(self, view_id: str) -> NDArray[np.int64]:
        """Return the row that each row is mixed with; see :meth:`.Cache.partners`."""
        return self._cache.partners(view_id)

    def read(self, view_id: str, units: tuple[int, ...]) -> TargetWindow:
        """Read some units of one view, whole."""
        encoded: dict[str, Encoded] = {}
        for name, group in self._groups.items():
            encoded[name] = self._cache.read_blocks(name, view_id, units, _arrays_of(group))
        return TargetWindow(
            unit_rows=self._cache.unit_rows,
            units=units,
            encoded=encoded,
            encodings={name: group.encoding for name, group in self._groups.items()},
            answer_of=self._permuted(units) if self._shuffled else None,
        )

    def _permuted(self, units: tuple[int, ...]) -> NDArray[np.int64]:
        """Permute the readable rows of each unit, the same way in every epoch."""
        rows = self._cache.unit_rows
        answer_of = np.arange(len(units) * rows, dtype=np.int64)
        readable = self._cache.samples.readable
        for slot, unit in enumerate(units):
            inside = readable[(readable >= unit * rows) & (readable < (unit + 1) * rows)]
            here = inside - unit * rows + slot * rows
            order = permutation(self._seed, len(here), draw=unit, purpose=Purpose.SHUFFLED_TARGETS)
            answer_of[here] = here[order]
        return answer_of
