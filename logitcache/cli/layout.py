"""Layout of numbers and tables."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from logitcache.data.listing import left_out_text
from logitcache.errors import redacted
from logitcache.report.quantities import bytes_text, encoding_text, percent_text
from logitcache.text import visible

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "PlainConsole",
    "bytes_text",
    "encoding_text",
    "new_console",
    "new_table",
    "percent_text",
    "print_line",
    "print_report_command",
    "print_unlisted",
]

# Columns of output to a file or a pipe; wider than any table.
_UNBROKEN = 10_000

_RIGHT = {
    *("accuracy", "data wait", "dense float32", "float32", "images", "images/s", "loss", "mAP"),
    *("ratio", "steps", "stored", "top-1"),
}


def new_table(first: str, *others: str) -> Table:
    """Return an empty table with these columns; columns of numbers are right-aligned."""
    table = Table()
    for name in (first, *others):  # long names go on in the next line and are never cut
        right = name in _RIGHT and name != first
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    return table


class PlainConsole(Console):
    """A console without markup that escapes control characters.

    Names of folders, images and classes may contain ``[`` or ``:``, which rich reads as markup and
    emoji by default, escape sequences, which a terminal obeys, and line breaks, after which a name
    could pass for a message of its own; see :func:`.visible`.

    Args:
        options: Further arguments of :class:`rich.console.Console`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print objects; a table is broken at spaces, or into lines in a narrow terminal."""
        fitted = [_fitted(o, self.width) if isinstance(o, Table) else o for o in objects]
        super().print(*fitted, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return escaped text; rich calls this for lines and for the cells of tables."""
        return super().render_str(visible(text), **options)


def _fitted(table: Table, width: int) -> Table | Text:
    """Return a table whose columns are broken at spaces, or its rows as lines if it is too wide.

    By itself, rich narrows the widest columns, whatever is in them, and cuts words.
    """
    headers = [str(column.header) for column in table.columns]
    cells = [[str(cell) for cell in column.cells] for column in table.columns]
    widest, widths = [], []
    for column, header, texts in zip(table.columns, headers, cells, strict=True):
        numbers = column.justify == "right"  # a number is not divided from its unit
        parts = [*header.split(), *(texts if numbers else " ".join(texts).split()), ""]
        widest.append(max(cell_len(text) for text in (header, *texts)))
        widths.append(max(cell_len(part) for part in parts))
    room = width - 3 * len(headers) - 1  # a border and two spaces for each column
    if sum(widest) <= room:
        return table
    if sum(widths) > room:
        return Text("\n".join(_record(headers, row) for row in zip(*cells, strict=True)))
    while sum(widths) < room:  # one more for the column that lacks most
        lacking = [full - now for full, now in zip(widest, widths, strict=True)]
        widths[lacking.index(max(lacking))] += 1
    for column, chosen in zip(table.columns, widths, strict=True):
        column.width = chosen
    return table


def _record(headers: list[str], row: tuple[str, ...]) -> str:
    """Return a row of a table as lines, for terminals that are too narrow for it."""
    first, *others = [f"{name}: {visible(cell)}" for name, cell in zip(headers, row, strict=True)]
    return "\n  ".join([first, *others])


def new_console() -> Console:
    """Return a console on stdout, which breaks no line if stdout is not a terminal.

    Other programs search such output for paths and numbers, and they break lines as they need.
    """
    console = PlainConsole()
    return console if console.is_terminal else PlainConsole(width=_UNBROKEN)


def print_line(console: Console, text: str) -> None:
    """Print one line without wrapping it."""
    console.print(text, soft_wrap=True)


def print_report_command(console: Console, path: str) -> None:
    """Print the command that makes the report of a cache or run, as a faint last line."""
    command = f"report: logitcache report {shlex.quote(redacted(path))}"
    console.print(command, style="dim", soft_wrap=True)


def print_unlisted(console: Console, whose: str, unlisted: Mapping[str, int]) -> None:
    """Print how many files of a folder are not among its images, by reason."""
    if unlisted:
        print_line(
            console, f"{whose}: files that are not among the images: {left_out_text(unlisted)}"
        )
