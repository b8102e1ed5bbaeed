"""Outputs of the teachers of a cache on a sample of rows, as a few numbers for each row.

Rows are chosen by the hash of their keys, so the same cache has the same sample. Units are read one
after the other, and only the numbers below are kept, so memory is bounded by one unit and by the
number of sampled rows.

Shapes: N sampled rows, R rows of a unit, C classes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from logitcache.cache.format.partners import mixed_views
from logitcache.encoding.heads import HEADS
from logitcache.targets.reader import TargetsReader
from logitcache.views.spec import parse_view

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from logitcache.cache.format.groups import TeacherGroup
    from logitcache.cache.read.reader import Cache
    from logitcache.encoding.arrays import Encoded

__all__ = ["DEFAULT_ROWS", "OutputSample", "TeacherRows", "sample_outputs"]

DEFAULT_ROWS = 65536
"""Rows of a sample by default, counted once for each view."""

_MOST_BYTES = 2**30  # that are read of all teachers together
_VALUES_AT_ONCE = 2**21  # probabilities in memory


@dataclass(frozen=True)
class TeacherRows:
    """Numbers of one teacher for each sampled row; NaN and -1 where it has no output.

    Attributes:
        predicted: Most probable class, int64 (N,).
        confidence: Its probability, float32 (N,).
        label: Probability of the label, float32 (N,); NaN without a label.
        tail: Probability of the classes that are not stored, float32 (N,).
        is_judged: Whether its classes are those of the labels.
    """

    predicted: NDArray[np.int64]
    confidence: NDArray[np.float32]
    label: NDArray[np.float32]
    tail: NDArray[np.float32]
    is_judged: bool


@dataclass(frozen=True)
class OutputSample:
    """Outputs on a sample of rows and views.

    The mean over teachers is that of those whose classes are those of the labels.

    Attributes:
        class_names: Names of the classes of the labels.
        rows: Row of the cache, int64 (N,); a row appears once for each of its sampled views.
        views: Ids of the views that the sample is from.
        view: Index of its view, int64 (N,).
        labels: Class, int64 (N,); -1 without one, and in views that mix images.
        teachers: Numbers of each teacher.
        mean_label: Probability of the label, mean over teachers, float32 (N,).
        other: Most probable class that is not the label, by the mean over teachers, int64 (N,).
        mean_other: Its probability, float32 (N,).
        divergence: Jensen-Shannon divergence of the teachers in nats, float32 (N,); zero for one.
        population: Number of rows and views that the sample was drawn from.
        read_seconds: Seconds to read the outputs of all teachers for one row.
    """

    class_names: Sequence[str]
    rows: NDArray[np.int64]
    views: Sequence[str]
    view: NDArray[np.int64]
    labels: NDArray[np.int64]
    teachers: Mapping[str, TeacherRows]
    mean_label: NDArray[np.float32]
    other: NDArray[np.int64]
    mean_other: NDArray[np.float32]
    divergence: NDArray[np.float32]
    population: int
    read_seconds: float

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def is_complete(self) -> bool:
        """Whether it contains all rows in all views that do not mix."""
        return len(self) == self.population


@dataclass(frozen=True)
class _Cell:
    """Sampled rows of one unit in one view.

    Attributes:
        view: Index of the view.
        unit: Number of the unit.
        positions: Rows within the unit, int64 (R,).
        labels: Their classes, int64 (R,).
    """

    view: int
    unit: int
    positions: NDArray[np.int64]
    labels: NDArray[np.int64]


def sample_outputs(
    cache: Cache,
    *,
    most: int = DEFAULT_ROWS,
    on_progress: Callable[[int, int], None] | None = None,
) -> OutputSample | None:
    """Read the outputs of all teachers for a sample of rows; None for a cache without logits.

    Args:
        cache: The cache.
        most: Number of rows, counted once for each view; about that many are read.
        on_progress: Called with the number of units that are read and of all units to read.

    Raises:
        CacheDamaged: A unit is not the one that was committed.
    """
    views = [view for view in cache.views if _teachers_of(cache, view)]
    if not views:
        return None
    mixed = set(mixed_views(cache.manifest))
    plain = [view for view in views if view not in mixed]
    chosen, has_labels = plain or views, bool(plain)
    plan = _plan(cache, chosen, most)
    found = _Numbers(cache, chosen)
    for number, (view, unit, count) in enumerate(plan):
        cell = found.cell(view, unit, count, has_labels=has_labels)
        found.add(cell)
        if on_progress is not None:
            on_progress(number + 1, len(plan))
    return found.sample()


def _teachers_of(cache: Cache, view: str) -> list[str]:
    return [name for name in cache.teachers if view in cache.views_of([name])]


def _plan(cache: Cache, views: Sequence[str], most: int) -> list[tuple[int, int, int]]:
    """Return views, units and numbers of rows to read, view by view.

    All units of all views if few bytes are read for them, otherwise some views of each unit, and
    otherwise one view of some units at equal distances.
    """
    reader = TargetsReader(cache, list(cache.teachers))
    unit_rows = reader.unit_rows
    units = [
        unit
        for block in cache.units()
        for unit in range(block * cache.unit_rows // unit_rows, _stop(cache, block, unit_rows))
    ]
    cells = max(1, _MOST_BYTES // max(1, unit_rows * reader.row_bytes))
    step = max(1, -(-len(units) // cells))
    units = units[::step]
    each = max(1, min(len(views), cells // len(units)))
    pairs = sorted(
        ((index * each + offset) % len(views), unit)
        for index, unit in enumerate(units)
        for offset in range(each)
    )
    whole = cache.rows_end * len(views) <= most
    count = unit_rows if whole else max(1, -(-most // len(pairs)))
    return [(view, unit, count) for view, unit in pairs]


def _stop(cache: Cache, block: int, unit_rows: int) -> int:
    """Return one past the last unit with rows of a block."""
    return -(-min((block + 1) * cache.unit_rows, cache.rows_end) // unit_rows)


class _Numbers:
    """Numbers of the rows that were read so far.

    Args:
        cache: The cache.
        views: Ids of the views that may be sampled.
    """

    def __init__(self, cache: Cache, views: Sequence[str]) -> None:
        self._cache = cache
        self._views = views
        self._readers: dict[tuple[str, ...], TargetsReader] = {}
        self._unit_rows = TargetsReader(cache, list(cache.teachers)).unit_rows
        self._parts: list[dict[str, NDArray[np.generic]]] = []
        self._judged = {name for name, group in cache.teachers.items() if _is_judged(group)}
        self._seconds, self._read_rows = 0.0, 0
        self._one_label = cache.manifest.data.label_width is None

    def cell(self, view: int, unit: int, count: int, *, has_labels: bool) -> _Cell:
        """Choose rows of a unit by the hash of their keys."""
        start = unit * self._unit_rows
        block, offset = divmod(start, self._cache.unit_rows)
        here = slice(offset, offset + self._unit_rows)
        readable = np.flatnonzero(self._cache.readable_unit(block)[here])
        if count < len(readable):
            hashes = self._cache.sample_unit("hash", block)[here][readable]
            readable = np.sort(readable[np.argsort(hashes, kind="stable")[:count]])
        labels = np.full(len(readable), -1)
        if has_labels and self._one_label:
            labels = self._cache.sample_unit("label", block)[here][readable].astype(np.int64)
        return _Cell(view, unit, readable, labels)

    def add(self, cell: _Cell) -> None:
        """Read the outputs of some rows and keep their numbers."""
        view_id = self._views[cell.view]
        names = tuple(_teachers_of(self._cache, view_id))
        if names not in self._readers:
            self._readers[names] = TargetsReader(self._cache, names)
        view = parse_view(self._cache.views[view_id], self._cache.url)
        started = time.perf_counter()
        window = self._readers[names].read(view, (cell.unit,), self._unit_rows)
        self._seconds += time.perf_counter() - started
        self._read_rows += self._unit_rows
        classes = max(self._cache.teachers[name].num_classes for name in names)
        step = max(1, _VALUES_AT_ONCE // classes)
        for start in range(0, len(cell.positions), step):
            rows = slice(start, start + step)
            positions = cell.positions[rows]
            encoded = {
                name: {array: values[positions] for array, values in arrays.items()}
                for name, arrays in window.encoded.items()
            }
            self._parts.append(
                {
                    "rows": positions + cell.unit * self._unit_rows,
                    "view": np.full(len(positions), cell.view),
                    "labels": cell.labels[rows],
                    **self._numbers(encoded, cell.labels[rows]),
                }
            )

    def sample(self) -> OutputSample:
        """Return everything that was read."""
        columns = {
            name: np.concatenate([part[name] for part in self._parts]) for name in self._parts[0]
        }
        readable = sum(int(self._cache.readable_unit(u).sum()) for u in self._cache.units())
        teachers = {
            name: TeacherRows(
                **{field: columns.pop(f"{name} {field}") for field in _FIELDS},
                is_judged=name in self._judged,
            )
            for name in self._cache.teachers
        }
        return OutputSample(
            class_names=self._cache.class_names,
            views=self._views,
            teachers=teachers,
            population=readable * len(self._views),
            read_seconds=self._seconds / max(1, self._read_rows),
            **columns,
        )

    def _numbers(
        self, encoded: Mapping[str, Encoded], labels_N: NDArray[np.int64]
    ) -> dict[str, NDArray[np.generic]]:
        """Return the numbers of a few rows by column."""
        found: dict[str, NDArray[np.generic]] = {}
        probs = {}
        for name, group in self._cache.teachers.items():
            columns, probs_NC = _of_teacher(group, encoded.get(name), labels_N)
            found |= {f"{name} {field}": column for field, column in columns.items()}
            if name in self._judged and probs_NC is not None:
                probs[name] = probs_NC
        return found | _of_all([*probs.values()], labels_N)


_FIELDS = ("predicted", "confidence", "label", "tail")


def _is_judged(group: TeacherGroup) -> bool:
    """Return whether the classes of a teacher are those of the labels, one for each image."""
    return group.class_names is None and HEADS[group.encoding.head].sums_to_one


def _of_teacher(
    group: TeacherGroup, encoded: Encoded | None, labels_N: NDArray[np.int64]
) -> tuple[dict[str, NDArray[np.generic]], NDArray[np.float32] | None]:
    """Return the numbers of one teacher, and its probabilities (N, C); None without outputs."""
    count = len(labels_N)
    nothing = np.full(count, np.nan, dtype=np.float32)
    if encoded is None:
        missing = np.full(count, -1)
        columns = dict(zip(_FIELDS, (missing, nothing, nothing, nothing), strict=True))
        return columns, None
    decoded = group.encoding.decode({name: encoded[name] for name in group.encoding.specs()})
    probs_NC = decoded.probs()
    label_N = nothing
    if _is_judged(group):
        label_N = np.where(labels_N >= 0, probs_NC[np.arange(count), labels_N], np.nan)
        if "label_logp" in encoded:  # exact also where the class of the label is not stored
            label_N = np.where(
                labels_N >= 0, np.exp(encoded["label_logp"], dtype=np.float32), np.nan
            )
    columns = {
        "predicted": decoded.top_class(),
        "confidence": probs_NC.max(axis=1),
        "label": label_N.astype(np.float32),
        "tail": decoded.tail_mass().astype(np.float32),
    }
    return columns, probs_NC


def _of_all(
    probs: Sequence[NDArray[np.float32]], labels_N: NDArray[np.int64]
) -> dict[str, NDArray[np.generic]]:
    """Return the numbers that depend on all teachers whose classes are those of the labels."""
    count = len(labels_N)
    if not probs:
        nothing = np.full(count, np.nan, dtype=np.float32)
        missing = np.full(count, -1)
        values = (nothing, missing, nothing, nothing)
        return dict(zip(("mean_label", "other", "mean_other", "divergence"), values, strict=True))
    mean_NC = np.mean(probs, axis=0)
    rows = np.arange(count)
    entropies = np.mean([_entropy(each_NC) for each_NC in probs], axis=0)
    divergence = np.maximum(0.0, _entropy(mean_NC) - entropies)
    mean_label = np.where(labels_N >= 0, mean_NC[rows, labels_N], np.nan)
    without_NC = mean_NC.copy()
    without_NC[rows[labels_N >= 0], labels_N[labels_N >= 0]] = -1.0
    other = without_NC.argmax(axis=1)
    return {
        "mean_label": mean_label.astype(np.float32),
        "other": other,
        "mean_other": without_NC[rows, other].astype(np.float32),
        "divergence": divergence.astype(np.float32),
    }


def _entropy(probs_NC: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the entropy of each row in nats, (N,)."""
    logs_NC = np.log(np.where(probs_NC > 0, probs_NC, 1.0), dtype=np.float64)
    entropy_N: NDArray[np.float64] = -(probs_NC * logs_NC).sum(axis=1, dtype=np.float64)
    return entropy_N
