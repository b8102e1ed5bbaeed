"""Images that deserve a look: the hardest, the most disputed, and those probably mislabeled.

All measures use the mean over the teachers whose classes are those of the labels, and are averaged
over the sampled views of an image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from logitcache.report.output_sample import OutputSample

__all__ = ["REVIEWS", "Found", "Review"]


@dataclass(frozen=True)
class Found:
    """An image that was chosen.

    Attributes:
        row: Its row in the cache.
        view: Id of the sampled view in which the measure is largest.
        value: The measure, mean over its sampled views.
        suggested: Class that the teachers predict instead of the label; -1 without one.
    """

    row: int
    view: str
    value: float
    suggested: int


@dataclass(frozen=True)
class Review:
    """A way to choose images.

    Attributes:
        title: Heading of the list.
        explanation: How the images are chosen, in one sentence.
        unit: Name of the measure, in one word.
        measure: Returns the measure of each sampled row, float64 (N,); NaN for rows that are not
            candidates.
    """

    title: str
    explanation: str
    unit: str
    measure: Callable[[OutputSample], NDArray[np.float64]]

    def find(self, sample: OutputSample, most: int) -> list[Found]:
        """Return the images with the largest measure, largest first."""
        value_N = self.measure(sample)
        here = np.flatnonzero(~np.isnan(value_N))
        rows, of_row = np.unique(sample.rows[here], return_inverse=True)
        if not len(rows):
            return []
        means = np.bincount(of_row, value_N[here]) / np.bincount(of_row)
        chosen = np.argsort(-means, kind="stable")[:most]
        found = []
        for index in chosen.tolist():
            own = here[of_row == index]
            largest = own[int(value_N[own].argmax())]
            found.append(
                Found(
                    int(rows[index]),
                    sample.views[int(sample.view[largest])],
                    float(means[index]),
                    int(sample.other[largest]),
                )
            )
        return found


def _hardness(sample: OutputSample) -> NDArray[np.float64]:
    """Return -log of the probability of the label."""
    probs_N = np.maximum(sample.mean_label.astype(np.float64), 1e-30)
    return -np.log(probs_N)


def _dispute(sample: OutputSample) -> NDArray[np.float64]:
    judged = sum(teacher.is_judged for teacher in sample.teachers.values())
    values = sample.divergence.astype(np.float64)
    return values if judged > 1 else np.full_like(values, np.nan)


def _mislabeling(sample: OutputSample) -> NDArray[np.float64]:
    """Return by how much another class exceeds the label, for candidates of confident learning.

    A row is a candidate if the probability of another class reaches the mean probability of that
    class on images with its label, and that of the label does not reach its own mean.
    """
    classes = len(sample.class_names)
    known = (sample.labels >= 0) & ~np.isnan(sample.mean_label)
    labels, probs = sample.labels[known], sample.mean_label[known].astype(np.float64)
    images_C = np.bincount(labels, minlength=classes)
    usual_C = np.full(classes, np.inf)
    np.divide(
        np.bincount(labels, probs, minlength=classes), images_C, out=usual_C, where=images_C > 0
    )
    found = np.full(len(sample), np.nan)
    other, other_probs = sample.other[known], sample.mean_other[known].astype(np.float64)
    candidate = (other_probs >= usual_C[other]) & (probs < usual_C[labels]) & (other_probs > probs)
    found[np.flatnonzero(known)[candidate]] = (other_probs - probs)[candidate]
    return found


REVIEWS: dict[str, Review] = {
    "hardest": Review(
        "Hardest images",
        "Images whose label has the lowest probability. The loss is that of the teachers, in nats.",
        "loss",
        _hardness,
    ),
    "disputed": Review(
        "Most disputed images",
        "Images on which the teachers differ most, by their Jensen-Shannon divergence in nats.",
        "divergence",
        _dispute,
    ),
    "mislabeled": Review(
        "Probably mislabeled images",
        "Images for which another class is as probable as it usually is on its own images, and the "
        "label is less probable than usual (a form of confident learning). The margin is the "
        "difference of both. They deserve a look; teachers that were trained on the same labels "
        "find fewer.",
        "margin",
        _mislabeling,
    ),
}
"""Ways to choose images, by name; a new one is one entry."""
