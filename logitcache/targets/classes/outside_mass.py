"""Probability of teachers for classes outside of a class map, on average over rows of a cache.

Shapes: C classes of the teacher.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from logitcache.encoding.heads import HEADS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from logitcache.cache.format.groups import TeacherGroup
    from logitcache.cache.read.reader import Cache
    from logitcache.targets.classes.class_space import ClassSpace

__all__ = ["mean_probs", "outside_notes"]

_ROWS, _AT_ONCE = 4096, 256


def mean_probs(cache: Cache, group: TeacherGroup, view: str) -> tuple[NDArray[np.float64], int]:
    """Return the mean probability of each class, (C,), and the number of rows it is measured on.

    Up to 4096 of the first rows with outputs are read.

    Args:
        cache: The cache.
        group: The teacher.
        view: Id of the view.
    """
    total_C, count = np.zeros(group.num_classes), 0
    arrays = list(group.encoding.specs())
    for unit in range(-(-cache.rows_end // group.unit_rows)):
        encoded = cache.read_units(group.name, view, [unit], arrays)
        for start in range(0, group.unit_rows, _AT_ONCE):
            some = {name: array[start : start + _AT_ONCE] for name, array in encoded.items()}
            decoded = group.encoding.decode(some)
            known = np.flatnonzero(decoded.computed)[: _ROWS - count]
            total_C += decoded.probs()[known].sum(axis=0, dtype=np.float64)
            count += len(known)
            if count == _ROWS:
                return total_C / count, count
    return total_C / max(1, count), count


def outside_notes(cache: Cache, space: ClassSpace, view: str) -> list[str]:
    """Return notes on the probability that teachers have outside of their class maps.

    Args:
        cache: The cache.
        space: The classes of the student.
        view: Id of a view of all of these teachers.
    """
    notes = []
    for name, lens in space.lenses.items():
        if not lens.outside.any():
            continue
        group, left = cache.teacher(name), f"{lens.outside.sum()} of {len(lens.targets)} classes"
        if not HEADS[group.encoding.head].sums_to_one:
            notes.append(f"teacher {name}: {left} are outside of the class map and left out")
            continue
        mass_C, rows = mean_probs(cache, group, view)
        notes.append(
            f"teacher {name}: {left} are outside of the class map, with "
            f"{mass_C[lens.outside].sum():.1%} of its probability (mean over {rows} rows)"
        )
    return notes
