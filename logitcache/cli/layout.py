"""How numbers and tables look, wherever they are printed."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

__all__ = ["bytes_text", "new_console", "new_table", "percent_text"]

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
    """Return stdout; wide enough for a table where it is no terminal."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=140)
