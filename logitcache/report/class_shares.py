"""What a class map does to a cache: the probability of merged classes, and of those outside."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from logitcache.cache.read.reader import open_cache
from logitcache.encoding.heads import HEADS
from logitcache.errors import UsageError
from logitcache.targets.classes.class_space import ClassSpace
from logitcache.targets.classes.outside_mass import mean_probs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from logitcache.cache.format.samples import Samples
    from logitcache.cache.read.reader import Cache
    from logitcache.data.class_map import ClassLens, ClassMaps

__all__ = ["ClassShare", "ClassShares", "TeacherShares", "class_shares", "teacher_shares"]

_LARGEST = 5


@dataclass(frozen=True)
class ClassShare:
    """A class, or a class of a student that classes of a teacher are merged into.

    Attributes:
        name: Name of the class.
        classes: Number of classes of the teacher.
        mass: Their probability, on average; None for several classes of a teacher with ``head:
            sigmoid``, whose probabilities have no sum.
    """

    name: str
    classes: int
    mass: float | None


@dataclass(frozen=True)
class TeacherShares:
    """Probability of a teacher in the classes of a student, on average over the rows of a view.

    Attributes:
        teacher: Name of the teacher.
        view: Id of the view.
        rows: Number of rows.
        classes: Classes of the student.
        outside: Number of classes of the teacher outside of the map, and their probability.
        largest: Those of them with the largest probability.
    """

    teacher: str
    view: str
    rows: int
    classes: list[ClassShare]
    outside: ClassShare
    largest: list[ClassShare]


@dataclass(frozen=True)
class ClassShares:
    """What a class map does to the teachers and labels of a cache.

    Attributes:
        url: Location of the cache.
        class_names: Classes of the student.
        teachers: Probabilities of each teacher that is mapped.
        labels: Number of readable images, by class of the student; with label sets, an image counts
            for each of its classes.
        labeled: Number of readable images with a class of the student.
        unlabeled: Number of readable images without a class of the student: without a label, or
            with labels outside of the map alone.
    """

    url: str
    class_names: list[str]
    teachers: list[TeacherShares]
    labels: list[int]
    labeled: int
    unlabeled: int

    def to_json(self) -> dict[str, Any]:
        """Return the numbers as JSON values."""
        return asdict(self)


def class_shares(url: str, class_map: ClassMaps, *, revision: str | None = None) -> ClassShares:
    """Measure what a class map does to all teachers of a cache, on up to 4096 rows.

    Args:
        url: The cache.
        class_map: Class maps, see :func:`.class_maps`.
        revision: sha256 of the revision that it must have, or the first 12 digits or more.

    Raises:
        CacheError: There is no cache.
        DataError: A file cannot be read.
        UsageError: A map does not fit the classes of a teacher.
    """
    cache = open_cache(url, revision=revision)
    space = ClassSpace.of(cache, list(cache.teachers), class_map)
    counts, readable = np.zeros(len(space.names) + 1, dtype=np.int64), 0
    for samples in cache.all_samples():
        readable += len(samples.readable)
        counts += _label_counts(samples, space)
    return ClassShares(
        url=cache.url,
        class_names=list(space.names),
        teachers=[teacher_shares(cache, name, space) for name in space.lenses],
        labels=counts[1:].tolist(),
        labeled=readable - int(counts[0]),
        unlabeled=int(counts[0]),
    )


def teacher_shares(cache: Cache, teacher: str, space: ClassSpace) -> TeacherShares:
    """Measure the probability of one teacher in the classes of a student, in its first view.

    Raises:
        UsageError: The cache has no complete view of the teacher.
    """
    group, lens = cache.teacher(teacher), space.lenses[teacher]
    views = cache.views_of([teacher])
    if not views:
        raise UsageError("the teacher has no complete view", where=cache.url, got=teacher)
    mass_C, rows = mean_probs(cache, group, views[0])
    own = group.class_names or cache.class_names
    outside = np.flatnonzero(lens.outside)
    largest = outside[np.argsort(-mass_C[outside], kind="stable")[:_LARGEST]]
    merged_G, has_sum = _merged(lens, mass_C), HEADS[group.encoding.head].sums_to_one
    counts_G = np.bincount(lens.targets, minlength=lens.classes + 1).tolist()
    return TeacherShares(
        teacher=teacher,
        view=views[0],
        rows=rows,
        classes=[
            ClassShare(name, count, float(mass))
            for name, count, mass in zip(space.names, counts_G[:-1], merged_G[:-1], strict=True)
        ],
        outside=ClassShare("outside", counts_G[-1], float(merged_G[-1]) if has_sum else None),
        largest=[ClassShare(own[c], 1, float(mass_C[c])) for c in largest],
    )


def _label_counts(samples: Samples, space: ClassSpace) -> NDArray[np.int64]:
    """Return the number of images without a class of the student, and with each: (S + 1,)."""
    here, table = samples.readable - samples.start, space.label_table
    if samples.label_sets is None:
        labels = samples.labels[here]
        found = (labels if table is None else table[labels]) + 1
        return np.bincount(found, minlength=len(space.names) + 1)
    sets = samples.label_sets.take(here)
    sets = sets if table is None else sets.merged(table)
    counts = np.bincount(sets.ids + 1, minlength=len(space.names) + 1)
    counts[0] = (sets.counts == 0).sum()
    return counts


def _merged(lens: ClassLens, mass_C: NDArray[np.float64]) -> NDArray[np.float64]:
    merged_G = np.zeros(lens.classes + 1)
    np.add.at(merged_G, lens.targets, mass_C)
    return merged_G
