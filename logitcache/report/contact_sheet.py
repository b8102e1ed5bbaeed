"""Contact sheets: views of a few images with their operations, partners and teacher outputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from logitcache.errors import UsageError
from logitcache.report.predictions import top_predictions
from logitcache.views.sheet import Cell, Line, SheetRow, write_sheet

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from logitcache.report.gallery import Gallery
    from logitcache.report.predictions import Prediction
    from logitcache.views.parameters import Mix, Step
    from logitcache.views.spec import View

__all__ = ["draw_sheet"]

_MOST_STEPS = 4


def draw_sheet(gallery: Gallery, out: Path, *, size: int, teacher: str | None) -> None:
    """Draw the views of a gallery, with the outputs of a teacher for each.

    Args:
        gallery: Images and views.
        out: PNG file to write.
        size: Side of a view in pixels.
        teacher: Name of the teacher; the first one of the cache by default.
    """
    predicted = {view.id: _predictions(gallery, view, teacher) for view in gallery.views}
    squares = {view.id: gallery.squares(view, size) for view in gallery.views}
    columns = [_title(gallery, view) for view in gallery.views]
    rows = []
    for index, position in enumerate(gallery.positions.tolist()):
        height, width = gallery.image(position).shape[1:]
        cells = []
        for view in gallery.views:
            lines = _operations(gallery, view, position, height, width)
            lines += predicted[view.id][index]
            partner = gallery.partner(view, position)
            inset = None if partner in {None, position} else gallery.image(partner or 0)
            cells.append(Cell(squares[view.id][index], lines, inset))
        rows.append(SheetRow(gallery.key(position) + _label(gallery, position), cells))
    write_sheet(out, columns, rows)


def _title(gallery: Gallery, view: View) -> list[str]:
    """Return the number of a view, and the names of its operations."""
    draw = f", draw {view.draw}" if view.is_random else ""
    names = ", ".join(operation.name for operation in view.operations)
    return [f"view {gallery.numbers[view.id]}{draw}", names]


def _label(gallery: Gallery, position: int) -> str:
    label, names = gallery.label(position), gallery.rows.class_names
    return f"  [{names[label]}]" if 0 <= label < len(names) else ""


def _operations(gallery: Gallery, view: View, position: int, height: int, width: int) -> list[Line]:
    """Return what was drawn for an image: steps, and the image that is mixed in."""
    drawn = gallery.drawn(view, position, height, width)
    steps = [*drawn.steps, *drawn.after]
    texts = [_step(step) for step in steps[:_MOST_STEPS]]
    if len(steps) > _MOST_STEPS:
        texts.append(f"and {len(steps) - _MOST_STEPS} more steps")
    partner = gallery.partner(view, position)
    if drawn.mix is not None and partner not in {None, position}:
        texts += _mixed(gallery, drawn.mix, partner or 0)
    return [Line(text, is_faint=True) for text in texts]


def _step(step: Step) -> str:
    # the first value is the strength; what follows is the color of what comes into the picture
    return " ".join([step.name, *(f"{value:.3g}" for value in step.values[:1])])


def _mixed(gallery: Gallery, mix: Mix, partner: int) -> list[str]:
    kind = "blended" if mix.box is None else "box"
    return [f"{1 - mix.lam:.0%} {kind}{_label(gallery, partner)}", gallery.key(partner)[-26:]]


def _predictions(gallery: Gallery, view: View, teacher: str | None) -> Sequence[list[Line]]:
    """Return the most probable classes of each chosen image; no lines without a cache."""
    cache = gallery.cache
    if cache is None and teacher is not None:
        raise UsageError(
            "teacher outputs can be shown for the views of a cache only",
            where=f"--teacher {teacher}",
            hint="give --cache, or leave out --teacher",
        )
    name = teacher or (None if cache is None else next(iter(cache.teachers), None))
    if cache is None or name is None:  # without a cache, or with features alone
        return [[] for _ in gallery.positions]
    rows = gallery.rows.numbers.take(gallery.positions)
    labels = np.array([gallery.label(position) for position in gallery.positions.tolist()])
    tops = top_predictions(cache, name, view.id, rows, labels)
    if tops is None:
        return [[Line(f"no outputs of {name}")] for _ in gallery.positions]
    return [_lines(top) for top in tops]


def _lines(top: Sequence[Prediction]) -> list[Line]:
    """Return a line for each class; the label and a wrong first class are marked."""
    lines = []
    for place, prediction in enumerate(top):
        mark = "right" if prediction.is_label else ""
        if place == 0 and prediction.is_label is False:
            mark = "wrong"
        lines.append(Line(f"{prediction.share:5.1%} {prediction.name}", mark))
    return lines
