"""Agreement between the teachers of a cache, and with the labels, by class."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from logitcache.report.page.blocks import Paragraph, Section, Table
from logitcache.report.quantities import percent_text

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from logitcache.report.output_sample import OutputSample, TeacherRows
    from logitcache.report.page.blocks import Block
    from logitcache.report.page.contents import Contents

__all__ = ["agreement"]

_MOST_CLASSES = 10


def agreement(contents: Contents) -> Section | None:
    """Return how often teachers predict the same class, and the label, by class."""
    blocks: list[Block] = []
    for cache in contents.first_caches:
        sample = contents.sample_of(cache)
        if sample is None:
            continue
        name = cache.origin.name
        blocks += [table for table in (_pairs(name, sample), _classes(name, sample)) if table]
    if not blocks:
        return None
    return Section("Agreement of teachers", [Paragraph(contents.sampled), *blocks])


def _pairs(name: str, sample: OutputSample) -> Table | None:
    rows = []
    for (one, first), (other, second) in combinations(sample.teachers.items(), 2):
        if first.is_judged != second.is_judged:
            continue  # other classes: equal numbers mean nothing
        both = (first.predicted >= 0) & (second.predicted >= 0)
        same = both & (first.predicted == second.predicted)
        right = same & (first.predicted == sample.labels)
        shares = [_share(same, both)]
        if (sample.labels >= 0).any() and first.is_judged:
            known = both & (sample.labels >= 0)
            shares += [_share(right, known), _share(same & known & ~right, known)]
        rows.append([f"{one} and {other}", *shares, *["-"] * (3 - len(shares))])
    if not rows:
        return None
    columns = ["teachers", "same class", "same and right", "same and wrong"]
    return Table(f"Agreement of the teachers of “{name}”.", columns, rows)


def _classes(cache: str, sample: OutputSample) -> Table | None:
    """Return the classes on which teachers agree least with the labels and with each other."""
    judged = {name: rows for name, rows in sample.teachers.items() if rows.is_judged}
    labeled = sample.labels >= 0
    if not judged or not labeled.any():
        return None
    images_C = _count(sample, labeled)
    right = {name: _count(sample, labeled & _right(sample, t)) for name, t in judged.items()}
    predictions = np.stack([rows.predicted for rows in judged.values()])
    same_C = _count(sample, labeled & (predictions == predictions[0]).all(axis=0))
    present = np.flatnonzero(images_C)
    mean_C = np.mean([*right.values()], axis=0) / np.maximum(images_C, 1)
    worst = present[np.argsort(mean_C[present], kind="stable")][:_MOST_CLASSES]
    rows = [
        [
            sample.class_names[c],
            str(images_C[c]),
            *(percent_text(right[name][c] / images_C[c]) for name in judged),
            *([percent_text(same_C[c] / images_C[c])] if len(judged) > 1 else []),
        ]
        for c in worst.tolist()
    ]
    all_same = ["all predict the same"] if len(judged) > 1 else []
    left = len(present) - len(worst)
    which = f", the {len(worst)} of {len(present)} with the lowest accuracy" if left else ""
    caption = f"Classes of “{cache}”{which}: share of outputs that predict the label, lowest first."
    return Table(caption, ["class", "outputs", *judged, *all_same], rows)


def _right(sample: OutputSample, rows: TeacherRows) -> NDArray[np.bool_]:
    right_N: NDArray[np.bool_] = rows.predicted == sample.labels
    return right_N


def _count(sample: OutputSample, where_N: NDArray[np.bool_]) -> NDArray[np.int64]:
    return np.bincount(sample.labels[where_N], minlength=len(sample.class_names))


def _share(some_N: NDArray[np.bool_], all_N: NDArray[np.bool_]) -> str:
    return percent_text(float(some_N.sum() / max(1, all_N.sum())))
