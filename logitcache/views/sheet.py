"""Contact sheets of views."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from logitcache.text import visible

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Cell", "SheetRow", "png_bytes", "write_sheet"]

_PAPER, _INK, _FAINT = (255, 255, 255), (20, 20, 20), (110, 110, 110)
_MARGIN, _TEXT_WIDTH, _LINE, _HEADER = 8, 150, 14, 32
_FONT_SIZE = 11
_CHARACTERS = 24  # what fits next to a picture


@dataclass(frozen=True)
class Cell:
    """One view of one image.

    Attributes:
        square: uint8 (3, S, S).
        lines: Text next to it.
    """

    square: NDArray[np.uint8]
    lines: Sequence[str] = ()


@dataclass(frozen=True)
class SheetRow:
    """All views of one image.

    Attributes:
        title: Text above them.
        cells: The views in order.
    """

    title: str
    cells: Sequence[Cell]


def png_bytes(square: NDArray[np.uint8]) -> bytes:
    """Return a picture, uint8 (3, S, S), as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(square.transpose(1, 2, 0).copy()).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def write_sheet(path: Path, columns: Sequence[Sequence[str]], rows: Sequence[SheetRow]) -> None:
    """Draw a sheet and write it as PNG.

    Args:
        path: The file; its folder is created if it is missing.
        columns: Up to two lines of text above each column.
        rows: One row per image, with one cell per column, all of the same S.
    """
    side = rows[0].cells[0].square.shape[-1]
    text_width = _TEXT_WIDTH if any(cell.lines for row in rows for cell in row.cells) else 0
    most = max(len(cell.lines) for row in rows for cell in row.cells)
    width, height = side + text_width + _MARGIN, max(side, most * _LINE) + _LINE + _MARGIN
    sheet = Image.new("RGB", (_MARGIN + width * len(columns), _HEADER + height * len(rows)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(_FONT_SIZE)
    for number, lines in enumerate(columns):
        for index, text in enumerate(lines):
            at = (_MARGIN + width * number, index * _LINE)
            draw.text(at, visible(text)[: width // 6], _FAINT, font=font)
    for line, row in enumerate(rows):
        top = _HEADER + height * line
        draw.text((_MARGIN, top), visible(row.title), _INK, font=font)
        for number, cell in enumerate(row.cells):
            left = _MARGIN + width * number
            sheet.paste(Image.fromarray(cell.square.transpose(1, 2, 0).copy()), (left, top + _LINE))
            for index, text in enumerate(cell.lines):
                at = (left + side + 4, top + _LINE + index * _LINE)
                draw.text(at, visible(text)[:_CHARACTERS], _INK, font=font)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, "PNG")
