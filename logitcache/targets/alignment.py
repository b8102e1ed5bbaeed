"""Detection of targets that belong to other images.

Shifted rows still train, only worse. So the most likely cached class of the first rows is compared
with their labels, and with the accuracy that the cache was sealed with: where the outputs were
right and are now right as often as by chance, they are not those of these images. Judged by a
bound on binomial tails, so few labels mean a later verdict, never a wrong one.
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
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from logitcache.batch import TeacherLogits
    from logitcache.cache.read.reader import Cache

__all__ = ["Alignment"]

_NEAR_CHANCE = 0.2  # of the way from chance to what the teacher was sealed with
_LEAST_GAP = 0.1
_EVIDENCE = 20.0  # nats: a verdict is wrong less than once in 10^8 runs
_MOST_ROWS = 100_000


@dataclass
class _Tally:
    """What is known of one teacher so far."""

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
    """Compares cached outputs with labels until it is sure.

    Attributes:
        url: The cache.
        labels_of: From rows to their classes as the cache knows them, -1 without one.
    """

    url: str
    labels_of: Callable[[NDArray[np.int64]], NDArray[np.int32]]
    _tallies: dict[str, _Tally] = field(default_factory=dict)

    @classmethod
    def of(cls, cache: Cache, teachers: Sequence[str]) -> Alignment:
        """Return the alarm for some teachers of a cache; those that know little are not judged."""
        found = cls(cache.url, UnitCache(partial(cache.sample_unit, "label"), cache.unit_rows).take)
        measured = {
            name: next(iter(cache.manifest.teachers[name].accuracy.values()), None)
            for name in teachers
        }
        if not any(measured.values()):
            return found
        chance = _chance(cache)
        for name, accuracy in measured.items():
            if accuracy is not None and chance is not None and accuracy - chance >= _LEAST_GAP:
                found._tallies[name] = _Tally(accuracy, chance)
        return found

    @property
    def is_settled(self) -> bool:
        """Whether there is nothing left to find out."""
        return all(tally.settled for tally in self._tallies.values())

    def see(
        self,
        rows_B: NDArray[np.int64],
        labels_BL: NDArray[np.int64],
        teachers: Mapping[str, TeacherLogits],
    ) -> None:
        """Judge one batch.

        Args:
            rows_B: Rows of the cache.
            labels_BL: Classes that may be the most likely: one a row, or one for each of the images
                that are mixed; -1 where the student may not see it, and that of the cache counts.
            teachers: Outputs of each teacher of the rows.

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
            self._judge(name, tally)

    def _judge(self, name: str, tally: _Tally) -> None:
        if not tally.seen:
            return
        share = tally.right / tally.seen
        certain = tally.seen * _divergence(share, tally.threshold) > _EVIDENCE
        tally.settled = certain or tally.seen > _MOST_ROWS
        if certain and share < tally.threshold:
            raise DataMismatch(
                f"outputs of teacher {name!r} do not belong to these images",
                where=self.url,
                expected=f"its most likely class is right for about {tally.expected:.1%} of them, "
                "as when the cache was made",
                got=f"{tally.right} of {tally.seen} ({share:.1%}); chance is {tally.chance:.1%}",
                hint="logitcache verify CACHE --data DIR compares every image; "
                "has the order of the classes changed?",
            )


def _chance(cache: Cache) -> float | None:
    """Return the share of the most frequent class, None without labels."""
    counts = np.zeros(0, dtype=np.int64)
    for unit in cache.units():
        labels = cache.sample_unit("label", unit)
        here = np.bincount(labels[labels >= 0], minlength=len(counts))
        here[: len(counts)] += counts
        counts = here
    return float(counts.max() / counts.sum()) if counts.any() else None


def _divergence(share: float, threshold: float) -> float:
    """Return KL(share || threshold) of two coins, in nats: Chernoff's exponent."""
    total = 0.0
    for p, q in ((share, threshold), (1 - share, 1 - threshold)):
        if p > 0:
            total += p * math.log(p / max(q, 1e-12))
    return total
