"""Writing of imported outputs into the units of a cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from logitcache.cache.format.ledger import committed_units
from logitcache.cache.format.names import Status
from logitcache.cache.write.unit_commit import Conditions
from logitcache.encoding.arrays import filled
from logitcache.precompute.environment import versions
from logitcache.precompute.run.compared_rows import FidelitySample
from logitcache.precompute.run.compute import Progress, stopped

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from logitcache.cache.format.groups import TeacherGroup
    from logitcache.cache.write.writer import CacheWriter
    from logitcache.encoding.arrays import Encoded
    from logitcache.exchange.imported_teacher import ImportedTeacher

__all__ = ["write_outputs"]


def write_outputs(
    writer: CacheWriter,
    group: TeacherGroup,
    teacher: ImportedTeacher,
    rows: NDArray[np.int64],
    on_progress: Callable[[Progress], None] | None,
    should_stop: Callable[[], bool] | None,
) -> None:
    """Write and commit every unit of an imported teacher that is missing.

    Args:
        writer: Writer of the cache, whose samples are committed.
        group: Group of the teacher.
        teacher: The teacher.
        rows: Row of the file for each row of the cache, int64; -1 for rows without an image.
        on_progress: Called after every unit.
        should_stop: Called before every unit.

    Raises:
        Interrupted: ``should_stop`` returned true.
        DataError: Numbers of the file cannot be used.
    """
    conditions = Conditions(versions=versions())
    needed = sorted(writer.needed_units(group.unit_rows))
    missing = [
        (number, view, unit)
        for number, view in enumerate(teacher.view_ids)
        for unit in needed
        if unit not in committed_units(writer.location, group.path, view)
    ]
    total = len(missing) * group.unit_rows
    for done, (number, view, unit) in enumerate(missing):
        if should_stop is not None and should_stop():
            raise stopped(writer)
        if on_progress is not None:
            on_progress(Progress(done * group.unit_rows, total))
        arrays, measured = _encoded(writer, group, teacher, rows, number, view, unit)
        writer.write_unit(group, view, unit, arrays, conditions, measured)


def _encoded(
    writer: CacheWriter,
    group: TeacherGroup,
    teacher: ImportedTeacher,
    rows: NDArray[np.int64],
    number: int,
    view: str,
    unit: int,
) -> tuple[Encoded, dict[str, float]]:
    """Return the arrays of a unit, and the sums of the encoding losses of its sampled rows."""
    start, stop = unit * group.unit_rows, (unit + 1) * group.unit_rows
    samples = writer.read_samples(start, stop)
    shown = np.flatnonzero(samples.status == Status.OK)
    arrays = filled(group.specs(), group.unit_rows)
    sample = FidelitySample(writer.manifest, group, view)
    if len(shown):
        logits = teacher.logits(number, rows[start:stop][shown], samples.keys[shown].tolist())
        encoded = group.encode(logits, samples.labels[shown])
        sample.add(unit, shown, logits, encoded)
        for name, array in encoded.items():
            arrays[name][shown] = array
    return arrays, sample.take(unit)
