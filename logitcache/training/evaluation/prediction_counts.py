"""Counts of predictions: by confidence, for reliability, and by pair of classes, for confusion.

Shapes: N images, B bins of confidence.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from logitcache.files import read_json, write_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["PREDICTIONS", "PredictionCounts", "read_predictions", "write_predictions"]

PREDICTIONS = "predictions.json"
"""File with the counts of the last evaluation, in the folder of a training run."""

_BINS = 15
_ARRAYS = ("images", "confidence", "right")


def _zeros() -> NDArray[np.float64]:
    return np.zeros(_BINS)


@dataclass
class PredictionCounts:
    """Counts of predictions on labeled images.

    Attributes:
        class_names: Names of the classes; outputs behind them have none.
        images: Number of images whose confidence, the largest probability, is in each of 15 equal
            bins, (B,).
        confidence: Sum of their confidences, (B,).
        right: Number of them whose most probable class is the label, (B,).
        pairs: Number of images by label and most probable class.
    """

    class_names: Sequence[str]
    images: NDArray[np.float64] = field(default_factory=_zeros)
    confidence: NDArray[np.float64] = field(default_factory=_zeros)
    right: NDArray[np.float64] = field(default_factory=_zeros)
    pairs: Counter[tuple[int, int]] = field(default_factory=Counter)

    def add(
        self,
        labels_N: NDArray[np.int64],
        predicted_N: NDArray[np.int64],
        confidence_N: NDArray[np.floating],
    ) -> None:
        """Add images with a label."""
        bins_N = np.minimum((confidence_N * _BINS).astype(np.int64), _BINS - 1)
        self.images += np.bincount(bins_N, minlength=_BINS)
        self.confidence += np.bincount(bins_N, confidence_N, minlength=_BINS)
        self.right += np.bincount(bins_N, labels_N == predicted_N, minlength=_BINS)
        pairs, counts = np.unique(np.stack([labels_N, predicted_N]), axis=1, return_counts=True)
        for label, predicted, count in zip(*pairs.tolist(), counts.tolist(), strict=True):
            self.pairs[label, predicted] += count

    @property
    def accuracy(self) -> float:
        """Share of images whose most probable class is the label; NaN without images."""
        return float(self.right.sum() / self.images.sum()) if self.images.any() else float("nan")

    @property
    def calibration_error(self) -> float:
        """Expected calibration error: mean difference of confidence and accuracy of the bins."""
        if not self.images.any():
            return float("nan")
        return float(np.abs(self.confidence - self.right).sum() / self.images.sum())

    @property
    def by_class(self) -> dict[int, tuple[int, int]]:
        """Number of images of each class that has some, and how many of them are right."""
        found: dict[int, tuple[int, int]] = {}
        for (label, predicted), count in sorted(self.pairs.items()):
            images, right = found.get(label, (0, 0))
            found[label] = images + count, right + (count if label == predicted else 0)
        return found

    def name_of(self, label: int) -> str:
        """Return the name of a class."""
        return self.class_names[label] if label < len(self.class_names) else f"output {label}"

    @classmethod
    def total(cls, parts: Iterable[PredictionCounts]) -> PredictionCounts:
        """Return the sum of counts of the same classes."""
        first, *others = parts
        found = cls(first.class_names)
        for part in (first, *others):
            found.images += part.images
            found.confidence += part.confidence
            found.right += part.right
            found.pairs.update(part.pairs)
        return found

    def to_json(self) -> dict[str, Any]:
        """Return the counts as JSON values."""
        return {
            "class_names": list(self.class_names),
            "images": self.images.astype(int).tolist(),
            "confidence": self.confidence.tolist(),
            "right": self.right.astype(int).tolist(),
            "pairs": [[label, other, n] for (label, other), n in sorted(self.pairs.items())],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Read the counts.

        Raises:
            ValueError: The values are not those of :meth:`to_json`.
        """
        try:
            names = [str(name) for name in values["class_names"]]
            bins = {name: np.array(values[name], dtype=np.float64) for name in _ARRAYS}
            pairs = Counter({(int(a), int(b)): int(n) for a, b, n in values["pairs"]})
        except (KeyError, TypeError) as error:
            raise ValueError(str(error)) from None
        if any(array.shape != (_BINS,) or not np.isfinite(array).all() for array in bins.values()):
            raise ValueError(f"expected {_BINS} finite numbers for each bin of confidence")
        if any(min(pair) < 0 for pair in pairs):
            raise ValueError("a class has a negative number")
        return cls(names, **bins, pairs=pairs)


def write_predictions(out: Path, counts: PredictionCounts) -> None:
    """Write the counts into the folder of a training run."""
    write_file(out / PREDICTIONS, json.dumps(counts.to_json()) + "\n")


def read_predictions(out: Path) -> PredictionCounts | None:
    """Read the counts of the last evaluation of a run, None if there are none.

    Raises:
        ValueError: The file is damaged.
    """
    values = read_json(out / PREDICTIONS)
    return None if values is None else PredictionCounts.from_json(values)
