"""How numbers and tables look, wherever they are printed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from logitcache.data.listing import left_out_text

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "bytes_text",
    "new_console",
    "new_table",
    "percent_text",
    "print_line",
    "print_unlisted",
]

_RIGHT = {"accuracy", "stored", "dense float32", "ratio", "top-1", "steps", "images"}


def percent_text(value: float | None) -> str:
    """Return a share in percent, a dash for None."""
    return "-" if value is None else f"{100 * value:.1f} %"


def bytes_text(count: float) -> str:
    """Return a number of bytes in the unit that suits it."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"


def new_table(first: str, *others: str) -> Table:
    """Return an empty table with these columns, those of numbers to the right."""
    table = Table(first)
    for name in others:
        table.add_column(name, justify="right" if name in _RIGHT else "left")
    return table


def new_console() -> Console:
    """Return stdout; wide enough for a table where it is no terminal.

    Text is printed as it is. Names of folders, images and classes may hold ``[`` or ``:``, which
    rich reads as markup and emoji by default.
    """
    console = Console(highlight=False, markup=False, emoji=False)
    if console.is_terminal:
        return console
    return Console(highlight=False, markup=False, emoji=False, width=140)


def print_line(console: Console, text: str) -> None:
    """Print one line, however long, without line breaks of its own."""
    console.print(text, soft_wrap=True)


def print_unlisted(console: Console, whose: str, unlisted: Mapping[str, int]) -> None:
    """Show which files of a folder are not among its images, by the reason."""
    if unlisted:
        print_line(
            console, f"{whose}: files that are not among the images: {left_out_text(unlisted)}"
        )
