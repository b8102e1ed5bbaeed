"""Contact sheets of views."""

from __future__ import annotations

import io
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from logitcache.text import visible

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

__all__ = ["MARKS", "Cell", "Line", "SheetRow", "png_bytes", "write_sheet"]

_PAPER, _INK, _FAINT = (255, 255, 255), (20, 20, 20), (110, 110, 110)
_GREEN, _RED = (4, 115, 79), (179, 38, 30)
_MARGIN, _TEXT_WIDTH, _LINE = 8, 170, 14
_FONT_SIZE = 11
_CHARACTER = 6  # width in pixels, about
_CHARACTERS = 26  # what fits next to a picture
_MARK = 10  # width of a mark and the space behind it
_INSET = 48


@dataclass(frozen=True)
class Line:
    """A line of text next to a view.

    Attributes:
        text: The text.
        mark: Name of the mark before it, a key of :data:`MARKS`; empty without one.
        is_faint: Whether it is a remark.
    """

    text: str
    mark: str = ""
    is_faint: bool = False


@dataclass(frozen=True)
class Cell:
    """One view of one image.

    Attributes:
        square: uint8 (3, S, S).
        lines: Text next to it.
        inset: Image below the text, uint8 (3, H, W), such as the one that is mixed in.
    """

    square: NDArray[np.uint8]
    lines: Sequence[Line] = ()
    inset: NDArray[np.uint8] | None = None

    @property
    def height(self) -> int:
        """Height of its picture or of its text, whichever is larger."""
        side: int = self.square.shape[-1]
        return max(side, len(self.lines) * _LINE + (0 if self.inset is None else _INSET + 4))


@dataclass(frozen=True)
class SheetRow:
    """All views of one image.

    Attributes:
        title: Text above them.
        cells: The views in order.
    """

    title: str
    cells: Sequence[Cell]

    @property
    def height(self) -> int:
        """Height of the row with its title."""
        return max(cell.height for cell in self.cells) + _LINE + _MARGIN


def png_bytes(square: NDArray[np.uint8]) -> bytes:
    """Return a picture, uint8 (3, S, S), as PNG."""
    buffer = io.BytesIO()
    _image(square).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def write_sheet(path: Path, columns: Sequence[Sequence[str]], rows: Sequence[SheetRow]) -> None:
    """Draw a sheet and write it as PNG.

    Args:
        path: The file; its folder is created if it is missing.
        columns: Lines of text above each column, wrapped to its width.
        rows: One row per image, with one cell per column, all of the same S.
    """
    side = rows[0].cells[0].square.shape[-1]
    cells = [cell for row in rows for cell in row.cells]
    text_width = _TEXT_WIDTH if any(cell.lines for cell in cells) else 0
    width = side + text_width + _MARGIN
    heads = [_wrapped(lines, (width - _MARGIN) // _CHARACTER) for lines in columns]
    legend = {line.mark for cell in cells for line in cell.lines if line.mark}
    header = max(len(lines) for lines in heads) * _LINE + 4
    height = header + sum(row.height for row in rows) + (_LINE + _MARGIN if legend else 0)
    sheet = Image.new("RGB", (_MARGIN + width * len(columns), height), _PAPER)
    draw = _Pen(ImageDraw.Draw(sheet))
    for number, lines in enumerate(heads):
        for index, text in enumerate(lines):
            draw.text((_MARGIN + width * number, index * _LINE), text, _FAINT)
    top = header
    for row in rows:
        draw.text((_MARGIN, top), row.title, _INK)
        for number, cell in enumerate(row.cells):
            _draw_cell(sheet, draw, cell, _MARGIN + width * number, top + _LINE)
        top += row.height
    left = _MARGIN
    for mark in sorted(legend):
        left = draw.marked((left, top), mark, MARKS[mark].meaning, _FAINT) + 2 * _MARGIN
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, "PNG")


def _draw_cell(sheet: Image.Image, draw: _Pen, cell: Cell, left: int, top: int) -> None:
    """Draw a view with its text and the image below the text."""
    side = cell.square.shape[-1]
    sheet.paste(_image(cell.square), (left, top))
    beside = left + side + 4
    for index, line in enumerate(cell.lines):
        color = _FAINT if line.is_faint else _INK
        draw.marked((beside, top + index * _LINE), line.mark, line.text[:_CHARACTERS], color)
    if cell.inset is not None:
        inset = _image(cell.inset)
        inset.thumbnail((_INSET, _INSET))
        sheet.paste(inset, (beside, top + len(cell.lines) * _LINE + 2))


def _wrapped(lines: Sequence[str], characters: int) -> list[str]:
    """Return lines that are short enough for a column."""
    return [part for line in lines for part in textwrap.wrap(visible(line), max(8, characters))]


def _image(pixels: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(pixels.transpose(1, 2, 0).copy())


class _Pen:
    """Text and marks on a sheet."""

    def __init__(self, draw: ImageDraw.ImageDraw) -> None:
        self._draw = draw
        self._font = ImageFont.load_default(_FONT_SIZE)

    def text(self, at: tuple[int, int], text: str, color: tuple[int, int, int]) -> None:
        """Write one line, its control characters escaped."""
        self._draw.text(at, visible(text), color, font=self._font)

    def marked(self, at: tuple[int, int], mark: str, text: str, color: tuple[int, int, int]) -> int:
        """Write one line behind a mark, and return its right end."""
        left, top = at
        if mark:
            MARKS[mark].draw(self._draw, (left, top + 3, left + 6, top + 9))
            left += _MARK
        self.text((left, top), text, color)
        return left + round(self._draw.textlength(visible(text), font=self._font))


@dataclass(frozen=True)
class Mark:
    """A mark before a line.

    Attributes:
        meaning: Its text in the legend.
        draw: Draws it into a box (left, top, right, bottom).
    """

    meaning: str
    draw: Callable[[ImageDraw.ImageDraw, tuple[int, int, int, int]], None]


def _draw_dot(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int]) -> None:
    draw.ellipse(box, fill=_GREEN)


def _draw_cross(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int]) -> None:
    left, top, right, bottom = box
    draw.line((left, top, right, bottom), fill=_RED, width=2)
    draw.line((left, bottom, right, top), fill=_RED, width=2)


MARKS: dict[str, Mark] = {
    "right": Mark("label", _draw_dot),
    "wrong": Mark("most probable class, not the label", _draw_cross),
}
"""Marks by name; they differ in shape as well as in color."""
