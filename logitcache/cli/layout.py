"""Layout of numbers and tables."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from logitcache.data.listing import left_out_text
from logitcache.errors import redacted
from logitcache.report.quantities import bytes_text, encoding_text, percent_text
from logitcache.text import visible

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.text import Text

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

_RIGHT = {"accuracy", "stored", "dense float32", "ratio", "top-1", "mAP", "steps", "images"}


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

    def render_str(self, text: str, **options: Any) -> Text:
        """Return escaped text; rich calls this for lines and for the cells of tables."""
        return super().render_str(visible(text), **options)


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
