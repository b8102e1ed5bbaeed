"""Detection of cached outputs that belong to other images.

A student can be trained on outputs of the wrong rows, but it becomes worse. So the most likely
cached class of the first rows is compared with their labels: if the cache was sealed with a high
accuracy and the accuracy is now near chance, the outputs do not belong to these images. The test is
a bound on binomial tails, so few labels delay the decision but do not make it wrong.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from logitcache.errors import DataMismatch
from logitcache.targets.unit_cache import UnitCache

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from logitcache.batch import TeacherLogits
    from logitcache.cache.read.reader import Cache

__all__ = ["Alignment"]

_NEAR_CHANCE = 0.2  # share of the way from chance accuracy to the accuracy at sealing
_LEAST_GAP = 0.1  # teachers that are closer to chance are not tested
_EVIDENCE = 20.0  # nats: e^-20 bounds the probability of a false alarm, less than one in 10^8 runs
_MOST_ROWS = 100_000


@dataclass
class _Tally:
    """Counts of right predictions of one teacher so far."""

    expected: float
    chance: float
    right: int = 0
    seen: int = 0
    settled: bool = False

    @property
    def threshold(self) -> float:
        return self.chance + _NEAR_CHANCE * (self.expected - self.chance)


@dataclass
class Alignment:
    """Sequential test whether cached outputs belong to the images, by comparison with labels.

    Attributes:
        url: Address of the cache.
        labels_of: Returns the labels that the cache has for some rows, -1 without one.
    """

    url: str
    labels_of: Callable[[NDArray[np.int64]], NDArray[np.int32]]
    _tallies: dict[str, _Tally] = field(default_factory=dict)

    @classmethod
    def of(
        cls, cache: Cache, teachers: Sequence[str], label_table: NDArray[np.int32] | None = None
    ) -> Alignment:
        """Return the test of some teachers of a cache, without those near chance accuracy.

        Args:
            cache: The cache.
            teachers: Names of the teachers.
            label_table: Class of the student for each label of the cache, as in
                :attr:`.ClassSpace.label_table`; None if they are the same.
        """
        unit_labels = partial(_unit_labels, cache, label_table)
        found = cls(cache.url, UnitCache(unit_labels, cache.unit_rows).take)
        measured = {
            name: next(iter(cache.manifest.teachers[name].accuracy.values()), None)
            for name in teachers
        }
        if not any(measured.values()):
            return found
        chance = _chance(map(unit_labels, cache.units()))
        for name, accuracy in measured.items():
            if accuracy is not None and chance is not None and accuracy - chance >= _LEAST_GAP:
                found._tallies[name] = _Tally(accuracy, chance)
        return found

    @property
    def is_settled(self) -> bool:
        """Whether every teacher is decided, so that no more batches are needed."""
        return all(tally.settled for tally in self._tallies.values())

    def see(
        self,
        rows_B: NDArray[np.int64],
        labels_BL: NDArray[np.int64],
        teachers: Mapping[str, TeacherLogits],
    ) -> None:
        """Count the right predictions of one batch and decide where they suffice.

        Args:
            rows_B: Rows of the cache.
            labels_BL: Labels of each row: one, or one for each of the images that are mixed; -1 if
                it is hidden from the student, in which case the label in the cache counts.
            teachers: Outputs of each teacher for the rows.

        Raises:
            DataMismatch: The outputs do not belong to these images.
        """
        own_B1 = self.labels_of(rows_B)[:, None]
        labels_BL = np.where((labels_BL < 0).all(axis=1, keepdims=True), own_B1, labels_BL)
        known_B = (labels_BL >= 0).any(axis=1)
        for name, tally in self._tallies.items():
            if tally.settled or name not in teachers:
                continue
            top_B1 = teachers[name].top_classes(1)[1].numpy()
            right_BL = (top_B1 == labels_BL) & (top_B1 >= 0)  # -1 is no class and no label
            tally.right += int(right_BL.any(axis=1)[known_B].sum())
            tally.seen += int(known_B.sum())
            self._decide(name, tally)

    def _decide(self, name: str, tally: _Tally) -> None:
        if not tally.seen:
            return
        share = tally.right / tally.seen
        # Chernoff: at an accuracy equal to the threshold, a share at least this far from it has a
        # probability of at most exp(-seen KL(share || threshold))
        certain = tally.seen * _divergence(share, tally.threshold) > _EVIDENCE
        tally.settled = certain or tally.seen > _MOST_ROWS
        if certain and share < tally.threshold:
            raise DataMismatch(
                f"outputs of teacher {name!r} do not belong to these images",
                where=self.url,
                expected=f"its most likely class is right for about {tally.expected:.1%} of them, "
                "as when the cache was made",
                got=f"{tally.right} of {tally.seen} ({share:.1%}); chance is {tally.chance:.1%}",
                hint="run logitcache verify CACHE --data DIR to compare every image, and check "
                "whether the order of the classes has changed",
            )


def _unit_labels(
    cache: Cache, label_table: NDArray[np.int32] | None, unit: int
) -> NDArray[np.int32]:
    labels: NDArray[np.int32] = cache.sample_unit("label", unit)
    return labels if label_table is None else label_table[labels]


def _chance(units: Iterable[NDArray[np.int32]]) -> float | None:
    """Return the share of the most frequent class, None without labels."""
    counts = np.zeros(0, dtype=np.int64)
    for labels in units:
        here = np.bincount(labels[labels >= 0], minlength=len(counts))
        here[: len(counts)] += counts
        counts = here
    return float(counts.max() / counts.sum()) if counts.any() else None


def _divergence(share: float, threshold: float) -> float:
    """Return KL(share || threshold) of two Bernoulli distributions, in nats."""
    total = 0.0
    for p, q in ((share, threshold), (1 - share, 1 - threshold)):
        if p > 0:
            total += p * math.log(p / max(q, 1e-12))
    return total
