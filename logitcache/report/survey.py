"""Survey of teacher outputs with dask: entropy, accuracy, agreement.

A dask worker reads a unit, compares it with its commit, and reduces it to three numbers per row, of
which sums and histograms are kept. So memory is bounded by units and classes, whatever the number
of images and views.
Shapes: N rows of a unit, C classes, T teachers.
"""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
from dask.base import compute

from logitcache.cache.format.names import Status
from logitcache.cache.format.partners import mixed_views
from logitcache.cache.read.reader import Cache, open_cache
from logitcache.encoding.heads import HEADS
from logitcache.errors import CacheError, first_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from logitcache.cache.format.groups import TeacherGroup

__all__ = ["Survey", "TeacherSurvey", "ViewSurvey", "survey"]

_BINS = 64
_DECODED_ROWS = 4096
_QUANTILES = (0.1, 0.5, 0.9)


@dataclass(frozen=True)
class ViewSurvey:
    """Survey of the outputs of one teacher for one view.

    Attributes:
        view: Id of the view.
        rows: Number of readable images.
        accuracy: Top-1 accuracy on the labeled images; None without labels, for images with label
            sets, and in views that mix images, which have two labels.
        entropy: Mean entropy of its outputs, in nats.
        tail_mass: Mean probability of the classes that are not stored; None where all are.
    """

    view: str
    rows: int
    accuracy: float | None
    entropy: float
    tail_mass: float | None


@dataclass(frozen=True)
class TeacherSurvey:
    """Survey of the outputs of one teacher.

    Attributes:
        teacher: Name of the teacher.
        predicted: Number of outputs with each class as the most probable one, over all views.
        entropy_quantiles: Entropy in nats below which 10, 50 and 90 % of its outputs are, with a
            resolution of a 64th of log C.
        class_accuracy: Accuracy on the images of each class, over all views that do not mix; None
            for a class without images, and for images with label sets.
        views: Surveys of the views.
    """

    teacher: str
    predicted: list[int]
    entropy_quantiles: dict[str, float]
    class_accuracy: list[float | None]
    views: list[ViewSurvey]


@dataclass(frozen=True)
class Survey:
    """Survey of the outputs of all teachers of a cache.

    Attributes:
        url: Location of the cache.
        revision: Number of the revision.
        class_names: Names of the classes.
        labels: Number of readable images of each class; with label sets, an image counts for each
            of its classes.
        labeled: Number of readable images whose classes are known; a label set may be empty.
        teachers: Surveys of the teachers.
        agreement: Share of outputs with the same most probable class, by pair of teachers.
    """

    url: str
    revision: int
    class_names: list[str]
    labels: list[int]
    labeled: int
    teachers: list[TeacherSurvey]
    agreement: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Return the survey as JSON values."""
        return asdict(self)


def survey(
    url: str,
    *,
    revision: str | None = None,
    on_view: Callable[[int, int], None] | None = None,
) -> Survey:
    """Survey every output of a sealed cache.

    It runs in threads of this process, or on the workers of the current dask client, where the
    cache has to be available at the same location.

    Args:
        url: The cache.
        revision: sha256 of the revision that it must have, or the first 12 digits or more.
        on_view: Called with the numbers of finished views and of all views.

    Raises:
        CacheError: There is no cache, or it has no outputs.
        CacheDamaged: A unit is not the one that was committed.
    """
    cache = open_cache(url, revision=revision)
    if not cache.teachers:
        hint = "add a teacher by logitcache precompute --teacher"
        got = f"features alone: {first_of(list(cache.features))}" if cache.features else None
        raise CacheError("the cache has no logits", where=url, got=got, hint=hint)
    totals = _Totals(cache)
    for number, view_id in enumerate(cache.views):
        totals.add(view_id)
        if on_view is not None:
            on_view(number + 1, len(cache.views))
    return totals.result()


@dataclass
class _TeacherTotals:
    """Sums over the views of one teacher.

    Attributes:
        predicted: Outputs by most probable class, int64 (C,).
        entropies: Histogram from 0 to log C, int64 (bins,).
        right: Correct outputs by label, over views that do not mix, int64 (C,).
        shown: Labeled images by label, over the same views, int64 (C,).
        views: Surveys of the views.
    """

    predicted: NDArray[np.int64]
    entropies: NDArray[np.int64]
    right: NDArray[np.int64]
    shown: NDArray[np.int64]
    views: list[ViewSurvey] = field(default_factory=list)


class _Totals:
    """Sums over all views of a cache, added view by view."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._at = (cache.url, cache.revision_sha256)
        self._mixed = set(mixed_views(cache.manifest))
        self._classes = len(cache.class_names)
        self._one_label = cache.manifest.data.label_width is None
        self._labels = np.zeros(self._classes, dtype=np.int64)
        self._labeled = 0
        self._pairs: dict[str, tuple[int, int]] = {}
        self._teachers = {
            name: _TeacherTotals(
                _zeros(group.num_classes),
                _zeros(_BINS),
                _zeros(self._classes),
                _zeros(self._classes),
            )
            for name, group in cache.teachers.items()
        }

    def add(self, view_id: str) -> None:
        """Add one view with all of its teachers, in one pass over their units."""
        seen = [n for n in self._cache.teachers if view_id in self._cache.views_of([n])]
        label_N = self._label_array()
        outputs = {name: self._outputs_array(name, view_id) for name in seen}
        sums: dict[str, Any] = {
            "labels": self._label_counts(),
            "rows": (label_N >= -1).sum(),
            "teachers": {name: self._sums(name, outputs[name], label_N) for name in seen},
            "pairs": {
                f"{a} {b}": _same_class(outputs[a], outputs[b], label_N >= -1)
                for a, b in itertools.combinations(seen, 2)
            },
        }
        (found,) = compute(sums)
        self._labeled, self._labels = int(found["labels"][0]), found["labels"][1:]
        rows = int(found["rows"])
        for pair, same in found["pairs"].items():
            before, of = self._pairs.get(pair, (0, 0))
            self._pairs[pair] = before + int(same), of + rows
        for name, values in found["teachers"].items():
            self._take(name, view_id, values, rows)

    def result(self) -> Survey:
        """Return the sums as shares and means."""
        cache = self._cache
        return Survey(
            url=cache.url,
            revision=cache.revision.number,
            class_names=list(cache.class_names),
            labels=self._labels.tolist(),
            labeled=self._labeled,
            teachers=[_teacher(cache.teachers[n], t) for n, t in self._teachers.items()],
            agreement={pair: same / max(1, of) for pair, (same, of) in self._pairs.items()},
        )

    def _take(self, name: str, view_id: str, values: Mapping[str, Any], rows: int) -> None:
        totals, group = self._teachers[name], self._cache.teachers[name]
        totals.predicted += values["predicted"]
        totals.entropies += values["entropies"].astype(np.int64)
        # labels are not among the classes of a teacher that has its own
        one_label = self._one_label and view_id not in self._mixed
        judged = one_label and self._labeled > 0 and group.class_names is None
        if judged:
            totals.right += values["right"]
            totals.shown += self._labels
        sparse = "tail" in group.encoding.specs()
        totals.views.append(
            ViewSurvey(
                view=view_id,
                rows=rows,
                accuracy=int(values["right"].sum()) / self._labeled if judged else None,
                entropy=float(values["entropy"]) / max(1, rows),
                tail_mass=float(values["tail"]) / max(1, rows) if sparse else None,
            )
        )

    def _sums(self, name: str, answers_N3: da.Array, label_N: da.Array) -> dict[str, Any]:
        """Return the sums of one teacher in one view as lazy dask arrays."""
        group = self._cache.teachers[name]
        predicted, entropy, tail = (answers_N3[:, column] for column in range(3))
        here = (label_N >= -1) & (predicted >= 0)
        right = here & (predicted == label_N)
        top = HEADS[group.encoding.head].max_entropy(group.num_classes)
        return {
            "predicted": _counts(predicted.astype(np.int64), here, group.num_classes),
            "entropies": da.histogram(entropy, _BINS, (0, top), weights=here.astype(np.int64))[0],
            "right": _counts(label_N, right, self._classes),
            "entropy": da.where(here, entropy, 0.0).sum(),
            "tail": da.where(here, tail, 0.0).sum(),
        }

    def _outputs_array(self, name: str, view_id: str) -> da.Array:
        """Return top class, entropy and tail mass of every row, float64 (N, 3).

        Rows that were not computed have -1, NaN and NaN.
        """
        rows = self._cache.teachers[name].unit_rows
        chunks = ((rows,) * (self._capacity // rows), (3,))
        answers_N3: da.Array = da.map_blocks(
            _outputs, *self._at, name, view_id, chunks=chunks, dtype=np.float64, meta=_META_N3
        )
        return answers_N3

    def _label_array(self) -> da.Array:
        """Return the label of every row, int64 (N,): -1 without one, -2 where there is no image."""
        rows = self._cache.unit_rows
        chunks = ((rows,) * (self._capacity // rows),)
        label_N: da.Array = da.map_blocks(
            _labels, *self._at, chunks=chunks, dtype=np.int64, meta=_META_N
        )
        return label_N

    def _label_counts(self) -> da.Array:
        """Return the number of labeled images, and of images of each class: int64 (1 + C,)."""
        blocks = self._capacity // self._cache.unit_rows
        counts: da.Array = da.map_blocks(
            _label_counts,
            *self._at,
            chunks=((1,) * blocks, (1 + self._classes,)),
            dtype=np.int64,
            meta=_META_N3.astype(np.int64),
        ).sum(axis=0)
        return counts

    @property
    def _capacity(self) -> int:
        rows = self._cache.unit_rows
        return -(-self._cache.revision.rows_end // rows) * rows


_META_N3 = np.empty((0, 0), dtype=np.float64)
_META_N = np.empty((0,), dtype=np.int64)


@lru_cache(maxsize=2)
def _opened(url: str, revision: str) -> Cache:
    """Open a cache once per process, since tasks carry only its URL."""
    cache = open_cache(url)
    if cache.revision_sha256 != revision:
        raise CacheError(
            "the cache was sealed again during the survey",
            where=url,
            expected=f"revision {revision}",
            got=f"revision {cache.revision_sha256}",
            hint="re-run the same command",
        )
    return cache


def _outputs(
    url: str,
    revision: int,
    teacher: str,
    view_id: str,
    *,
    block_id: tuple[int, ...] | None = None,
) -> NDArray[np.float64]:
    """Return top class, entropy and tail mass of one unit: float64 (N, 3)."""
    assert block_id is not None
    cache = _opened(url, revision)
    group = cache.teachers[teacher]
    encoded = cache.read_units(teacher, view_id, [block_id[0]], list(group.encoding.specs()))
    parts = []
    for start in range(0, group.unit_rows, _DECODED_ROWS):
        some = {name: array[start : start + _DECODED_ROWS] for name, array in encoded.items()}
        decoded = group.encoding.decode(some)
        columns = [decoded.top_class(), decoded.entropy(), decoded.tail_mass()]
        parts.append(np.stack(columns, axis=1))
    return np.concatenate(parts)


def _labels(
    url: str, revision: int, *, block_id: tuple[int, ...] | None = None
) -> NDArray[np.int64]:
    """Return the labels of one block: int64 (N,); -2 where there is no readable image."""
    assert block_id is not None
    samples = _opened(url, revision).samples_of(block_id[0])
    return np.where(samples.status == Status.OK, samples.labels, -2).astype(np.int64)


def _label_counts(
    url: str, revision: int, *, block_id: tuple[int, ...] | None = None
) -> NDArray[np.int64]:
    """Return the labeled images of one block, and those of each class: int64 (1, 1 + C)."""
    assert block_id is not None
    cache = _opened(url, revision)
    samples = cache.samples_of(block_id[0])
    readable = samples.readable - samples.start
    if samples.label_sets is not None:
        sets = samples.label_sets.take(readable)
        labeled, ids = sets.known.sum(), sets.ids
    else:
        labels = samples.labels[readable]
        ids = labels[labels >= 0]
        labeled = len(ids)
    counts_C = np.bincount(ids, minlength=len(cache.class_names))
    return np.concatenate([[labeled], counts_C]).astype(np.int64)[None]


def _same_class(one_N3: da.Array, other_N3: da.Array, where_N: da.Array) -> da.Array:
    """Count the rows whose top classes are equal, and known."""
    same: da.Array = ((one_N3[:, 0] == other_N3[:, 0]) & (one_N3[:, 0] >= 0) & where_N).sum()
    return same


def _counts(values_N: da.Array, where_N: da.Array, classes: int) -> da.Array:
    """Count each of the classes where a condition is true: int64 (classes,)."""
    # other rows go to an additional bin: a boolean selection has no known shape in dask
    chosen = da.where(where_N, values_N, classes)
    counts_C: da.Array = da.bincount(chosen, minlength=classes + 1)[:classes]
    return counts_C


def _teacher(group: TeacherGroup, totals: _TeacherTotals) -> TeacherSurvey:
    share = np.cumsum(totals.entropies) / max(1, totals.entropies.sum())
    most = HEADS[group.encoding.head].max_entropy(group.num_classes)
    edges = np.linspace(0, most, _BINS + 1)[1:]
    quantiles = {f"{q:.0%}": float(edges[int(np.searchsorted(share, q))]) for q in _QUANTILES}
    pairs = zip(totals.right.tolist(), totals.shown.tolist(), strict=True)
    return TeacherSurvey(
        teacher=group.name,
        predicted=totals.predicted.tolist(),
        entropy_quantiles=quantiles,
        class_accuracy=[right / shown if shown else None for right, shown in pairs],
        views=totals.views,
    )


def _zeros(count: int) -> NDArray[np.int64]:
    return np.zeros(count, dtype=np.int64)
