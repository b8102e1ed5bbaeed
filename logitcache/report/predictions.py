"""Most probable classes of a teacher for a few rows of a cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from logitcache.targets.reader import TargetsReader
from logitcache.views.spec import parse_view

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from logitcache.cache.read.reader import Cache

__all__ = ["TOP", "Prediction", "top_predictions"]

TOP = 5


@dataclass(frozen=True)
class Prediction:
    """A class that a teacher predicts.

    Attributes:
        name: Name of the class.
        share: Its probability.
        is_label: Whether it is the label of the image; None where that is not known, or where the
            classes of the teacher are not those of the labels.
    """

    name: str
    share: float
    is_label: bool | None


def top_predictions(
    cache: Cache,
    teacher: str,
    view_id: str,
    rows_B: NDArray[np.int64],
    labels_B: NDArray[np.int64],
    *,
    top: int = TOP,
) -> list[list[Prediction]] | None:
    """Return the most probable classes of each row, most probable first.

    Args:
        cache: The cache.
        teacher: Name of the teacher.
        view_id: Id of the view.
        rows_B: Rows of readable images.
        labels_B: Their classes, -1 without one.
        top: Number of classes; fewer where fewer are stored.

    Returns:
        A list for each row; None if the teacher has no outputs in this view.
    """
    if view_id not in cache.views_of([teacher]):
        return None
    reader = TargetsReader(cache, [teacher])
    view = parse_view(cache.views[view_id], cache.url)
    units = tuple(sorted({int(row) // reader.unit_rows for row in rows_B}))
    outputs = reader.read(view, units, reader.unit_rows).gather(rows_B).teachers[teacher]
    log_probs_BK, ids_BK = outputs.top_classes(top)
    own_names = cache.teacher(teacher).class_names
    names = own_names or cache.class_names
    shares = zip(log_probs_BK.exp().tolist(), ids_BK.tolist(), labels_B.tolist(), strict=True)
    return [
        [
            Prediction(
                names[c] if c < len(names) else f"class {c}",
                share,
                c == label if label >= 0 and own_names is None else None,
            )
            for share, c in zip(of_row, ids, strict=True)
            if c >= 0
        ]
        for of_row, ids, label in shares
    ]
