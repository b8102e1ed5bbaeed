"""Which classes teachers and students take for each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from logitcache.report.page.blocks import HeatTable, Paragraph, Section, Table
from logitcache.report.page.charts import Charts
from logitcache.report.page.counts import predictors
from logitcache.report.quantities import percent_text

if TYPE_CHECKING:
    from logitcache.report.page.blocks import Block
    from logitcache.report.page.contents import Contents
    from logitcache.report.page.counts import Predictor

__all__ = ["confusion"]

_MOST_CLASSES, _MOST_PAIRS = 20, 5


def confusion(contents: Contents) -> Section | None:
    """Return the most frequent confusions, and whole matrices of up to 20 classes."""
    found = predictors(contents)
    if not found:
        return None
    small = [p for p in found if len(p.counts.class_names) <= _MOST_CLASSES]
    text = f"Each row of a matrix adds up to all images of a class. {contents.sampled}"
    if len(small) < len(found):
        text += f" Matrices of more than {_MOST_CLASSES} classes are not drawn."
    blocks: list[Block] = [Paragraph(text)]
    if small:
        blocks.append(Charts([_matrix(predictor) for predictor in small]))
    blocks.append(_table(found))
    return Section("Confusion", blocks)


def _matrix(predictor: Predictor) -> HeatTable:
    counts = predictor.counts
    numbers = range(len(counts.class_names))
    totals = counts.by_class
    shares = [
        [
            counts.pairs[label, other] / totals[label][0] if label in totals else 0.0
            for other in numbers
        ]
        for label in numbers
    ]
    return HeatTable(
        f"Confusion of {predictor.name}: share in percent of the images of a class (row) that is "
        "predicted as each class (column, by number).",
        [_numbered(number, counts.class_names[number]) for number in numbers],
        [str(number) for number in numbers],
        shares,
    )


def _numbered(number: int, name: str) -> str:
    return name if name == str(number) else f"{number}: {name}"


def _table(found: list[Predictor]) -> Table:
    rows = []
    for predictor in found:
        counts, totals = predictor.counts, predictor.counts.by_class
        wrong = [(n, pair) for pair, n in counts.pairs.items() if pair[0] != pair[1]]
        for number, (label, other) in sorted(wrong, key=lambda entry: (-entry[0], entry[1]))[
            :_MOST_PAIRS
        ]:
            share = percent_text(number / totals[label][0])
            names = counts.name_of(label), counts.name_of(other)
            rows.append([predictor.name, *names, str(number), share])
    columns = ["network", "class", "predicted as", "predictions", "share of the class"]
    caption = f"Most frequent confusions, up to {_MOST_PAIRS} of each network."
    return Table(caption, columns, rows, text_columns=(1, 2))
