"""Parts of a section of a report: text, notes, tables, pictures and commands.

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

__all__ = [
    "Block",
    "Card",
    "Cards",
    "Commands",
    "HeatTable",
    "Note",
    "Paragraph",
    "Section",
    "Table",
]


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


@dataclass(frozen=True)
class HeatTable:
    """A matrix of shares, as a table with shaded cells.

    Attributes:
        caption: What it shows.
        names: Headings of the rows.
        columns: Headings of the columns.
        shares: Values of each row, from 0 to 1.
    """

    template: ClassVar[str] = "heat_table"

    caption: str
    names: Sequence[str]
    columns: Sequence[str]
    shares: Sequence[Sequence[float]]

    def texts(self) -> list[list[str]]:
        """Return the shares in percent, nothing for those below half a percent."""
        return [[f"{100 * s:.0f}" if s >= 0.005 else "" for s in row] for row in self.shares]

    def markdown(self) -> str:
        """Return the block in Markdown."""
        rows = [[name, *row] for name, row in zip(self.names, self.texts(), strict=True)]
        return Table(self.caption, ["class", *self.columns], rows).markdown()


@dataclass(frozen=True)
class Card:
    """A picture with what is known about it.

    Attributes:
        title: Its name.
        picture: Its address, which contains it; None if it is not available.
        alternative: What it shows, for those who do not see it.
        facts: Lines below it.
        lists: Name, and names, values and marks of the entries of each list below.
    """

    title: str
    picture: str | None
    alternative: str
    facts: Sequence[str]
    lists: Sequence[tuple[str, Sequence[tuple[str, str, str]]]]


@dataclass(frozen=True)
class Cards:
    """Pictures next to each other.

    Attributes:
        title: Heading.
        text: A sentence below it.
        cards: The pictures.
    """

    template: ClassVar[str] = "cards"

    title: str
    text: str
    cards: Sequence[Card]

    def markdown(self) -> str:
        """Return the block in Markdown: a table without the pictures."""
        rows = [
            [
                card.title,
                "; ".join(card.facts),
                "; ".join(f"{name}: {_first(entries)}" for name, entries in card.lists),
            ]
            for card in self.cards
        ]
        columns = ["image", "facts", "predictions"]
        return Table(f"{self.title}. {self.text}", columns, rows, (1, 2)).markdown()


def _first(entries: Sequence[tuple[str, str, str]]) -> str:
    return " ".join(entries[0][:2]) if entries else "-"
