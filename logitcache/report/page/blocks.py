"""Parts of a section of a report: text, notes, tables and commands.

A block has a template of the same name in ``templates/blocks/``, and a form in Markdown. Text from
caches and runs is escaped where it is written, never before.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Protocol

from logitcache.markdown import block, markdown
from logitcache.text import visible

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Block", "Commands", "Note", "Paragraph", "Section", "Table"]


class Block(Protocol):
    """A part of a section."""

    template: ClassVar[str]
    """Name of its template."""

    def markdown(self) -> str:
        """Return the block in Markdown."""


@dataclass(frozen=True)
class Section:
    """A section of a report.

    Attributes:
        title: Its heading.
        blocks: Its parts in order.
    """

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Paragraph:
    """A paragraph of text."""

    template: ClassVar[str] = "paragraph"

    text: str

    def markdown(self) -> str:
        """Return the block in Markdown."""
        return markdown(self.text)


@dataclass(frozen=True)
class Note:
    """A remark on what is missing, incomplete or damaged."""

    template: ClassVar[str] = "note"

    text: str

    def markdown(self) -> str:
        """Return the block in Markdown."""
        return f"> **Note:** {markdown(self.text)}"


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        caption: What it shows.
        columns: Headings of the columns.
        rows: Texts of the cells; the first one of a row is its heading.
        text_columns: Indices of further columns that contain text; the others are numbers, aligned
            at the right.
    """

    template: ClassVar[str] = "table"

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    text_columns: Sequence[int] = field(default=())

    def markdown(self) -> str:
        """Return the block in Markdown."""
        words = {0, *self.text_columns}
        rule = ["---" if index in words else "---:" for index in range(len(self.columns))]
        cells = [[markdown(cell) for cell in row] for row in [self.columns, *self.rows]]
        lines = [cells[0], rule, *cells[1:]]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return f"{markdown(self.caption)}\n\n{table}"


@dataclass(frozen=True)
class Commands:
    """Commands of a shell.

    Attributes:
        caption: What they do.
        lines: The commands.
    """

    template: ClassVar[str] = "commands"

    caption: str
    lines: Sequence[str]

    def markdown(self) -> str:
        """Return the block in Markdown."""
        text = "".join(f"{visible(line)}\n" for line in self.lines)
        return f"{markdown(self.caption)}\n\n{block('sh', text)}"
