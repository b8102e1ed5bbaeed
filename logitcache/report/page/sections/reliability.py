"""Reliability of teachers and students: accuracy by confidence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from logitcache.report.page.axis import Axis
from logitcache.report.page.blocks import Paragraph, Section, Table
from logitcache.report.page.charts import Charts, Curves, Series
from logitcache.report.page.counts import predictors
from logitcache.report.quantities import percent_text, percent_tick

if TYPE_CHECKING:
    from logitcache.report.page.contents import Contents
    from logitcache.report.page.counts import Predictor

__all__ = ["reliability"]

_LEAST_IMAGES = 10  # of a bin that is drawn
_CLASSES_TOGETHER = 8  # curves in one chart


def reliability(contents: Contents) -> Section | None:
    """Return a reliability diagram of the teachers and networks with recorded predictions."""
    found = predictors(contents)
    if not found:
        return None
    groups = [found[at : at + _CLASSES_TOGETHER] for at in range(0, len(found), _CLASSES_TOGETHER)]
    text = (
        "Images in 15 bins of confidence, the probability of the most probable class. On the "
        "dotted line, confidence equals accuracy; below it, a network is overconfident. Bins with "
        f"fewer than {_LEAST_IMAGES} images are not drawn. {contents.sampled}"
    )
    return Section(
        "Reliability",
        [Paragraph(text), Charts([_chart(group) for group in groups]), _table(found)],
    )


def _chart(group: list[Predictor]) -> Curves:
    series = [Series(p.name, _points(p), number, has_marks=True) for number, p in enumerate(group)]
    return Curves(
        "Reliability diagram",
        "Accuracy over mean confidence of the images of a bin.",
        Axis("confidence", 0.0, 1.0, percent_tick),
        Axis("accuracy", 0.0, 1.0, percent_tick),
        series,
        has_identity=True,
    )


def _points(predictor: Predictor) -> list[tuple[float, float]]:
    counts = predictor.counts
    bins = zip(counts.confidence, counts.right, counts.images, strict=True)
    return [(float(c / n), float(r / n)) for c, r, n in bins if n >= _LEAST_IMAGES]


def _table(found: list[Predictor]) -> Table:
    rows = [
        [
            predictor.name,
            predictor.where,
            f"{predictor.counts.images.sum():.0f}",
            percent_text(predictor.counts.accuracy),
            percent_text(float(predictor.counts.confidence.sum() / predictor.counts.images.sum())),
            percent_text(predictor.counts.calibration_error),
        ]
        for predictor in found
    ]
    columns = ["network", "predictions on", "predictions", "top-1", "mean confidence"]
    return Table(
        "Calibration; the expected calibration error is the mean difference of confidence and "
        "accuracy over the bins.",
        [*columns, "calibration error"],
        rows,
        text_columns=(1,),
    )
