"""Probability of teachers for classes outside of a class map, on average over rows of a cache.

Shapes: C classes of the teacher.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from logitcache.encoding.heads import HEADS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from logitcache.cache.format.groups import TeacherGroup
    from logitcache.cache.read.reader import Cache
    from logitcache.targets.classes.class_space import ClassSpace

__all__ = ["OutsideShare", "mean_probs", "outside_shares"]

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


@dataclass(frozen=True)
class OutsideShare:
    """Classes of a teacher that are outside of its class map.

    Attributes:
        teacher: Name of the teacher.
        outside: Number of these classes.
        classes: Number of all classes.
        mass: Their probability, on average; None where the classes of the teacher are independent.
        rows: Number of rows it is measured on.
    """

    teacher: str
    outside: int
    classes: int
    mass: float | None
    rows: int

    @property
    def note(self) -> str:
        """A line for the user."""
        left = f"teacher {self.teacher}: {self.outside} of {self.classes} classes are outside"
        if self.mass is None:
            return f"{left} of the class map and left out"
        return (
            f"{left} of the class map, with {self.mass:.1%} of its probability "
            f"(mean over {self.rows} rows)"
        )


def outside_shares(cache: Cache, space: ClassSpace, view: str) -> list[OutsideShare]:
    """Return the classes outside of class maps, of the teachers that have any.

    Args:
        cache: The cache.
        space: The classes of the student.
        view: Id of a view of all of these teachers.
    """
    found = []
    for name, lens in space.lenses.items():
        if not lens.outside.any():
            continue
        group, counts = cache.teacher(name), (int(lens.outside.sum()), len(lens.targets))
        if HEADS[group.encoding.head].sums_to_one:
            mass_C, rows = mean_probs(cache, group, view)
            mass = float(mass_C[lens.outside].sum())
            found.append(OutsideShare(name, *counts, mass, rows))
        else:
            found.append(OutsideShare(name, *counts, None, 0))
    return found
