"""Charts of a report: curves, values with intervals, and bars, as SVG with a table of the numbers.

A chart computes places of its marks in a fixed coordinate system; its template writes them. Colors
are those of the style sheet, which differ between light and dark.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from logitcache.markdown import markdown

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from logitcache.report.page.axis import Axis
    from logitcache.report.page.blocks import Block, Table

__all__ = ["Bars", "Charts", "Curves", "IntervalRow", "Intervals", "Series"]

_WIDTH, _HEIGHT = 420, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 24, 40
_ROW, _FOOT = 34, 40  # of charts with a row for each name
_MOST_POINTS = 200
_COLORS = 8


@dataclass(frozen=True)
class Series:
    """Points of one thing in a chart.

    Attributes:
        name: Its name in the legend.
        points: x and y of each point.
        color: Number of its color and dashes.
        has_line: Whether the points are joined by a line.
        has_marks: Whether each point has a mark.
    """

    name: str
    points: Sequence[tuple[float, float]]
    color: int = 0
    has_line: bool = True
    has_marks: bool = False

    @property
    def style(self) -> str:
        """Classes of the style sheet: a color, and dashes where colors repeat."""
        return f"c{self.color % _COLORS} d{self.color // _COLORS % 4}"

    @property
    def thinned(self) -> list[tuple[float, float]]:
        """At most 200 of the points, at equal distances, the last one included."""
        step = -(-len(self.points) // _MOST_POINTS)
        return [*self.points[::-1][:: max(1, step)]][::-1]


@dataclass(frozen=True)
class Curves:
    """A chart of curves or points over two axes.

    Attributes:
        title: Its heading.
        description: What it shows, for those who do not see it.
        x: Horizontal axis.
        y: Vertical axis.
        series: The curves.
        has_identity: Whether the line y = x is drawn.
        table: The numbers.
    """

    template: ClassVar[str] = "curves"
    width: ClassVar[int] = _WIDTH
    height: ClassVar[int] = _HEIGHT

    title: str
    description: str
    x: Axis
    y: Axis
    series: Sequence[Series]
    has_identity: bool = False
    table: Table | None = None

    @property
    def frame(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of the area between the axes."""
        return _LEFT, _TOP, _WIDTH - _RIGHT, _HEIGHT - _BOTTOM

    def x_of(self, place: float) -> str:
        """Return the horizontal coordinate of a place on the axis."""
        return f"{_LEFT + place * (_WIDTH - _RIGHT - _LEFT):.1f}"

    def y_of(self, place: float) -> str:
        """Return the vertical coordinate of a place on the axis."""
        return f"{_HEIGHT - _BOTTOM - place * (_HEIGHT - _BOTTOM - _TOP):.1f}"

    def marks(self, series: Series) -> list[tuple[str, str, str]]:
        """Return coordinates and texts of the points of a series."""
        return [
            (
                self.x_of(self.x.place(x)),
                self.y_of(self.y.place(y)),
                f"{series.name}: {self.x.text(x)}, {self.y.text(y)}",
            )
            for x, y in series.thinned
        ]

    def line(self, series: Series) -> str:
        """Return the coordinates of the line through the points of a series."""
        return " ".join(f"{x},{y}" for x, y, _ in self.marks(series))

    def markdown(self) -> str:
        """Return the block in Markdown: its numbers."""
        return _in_markdown(self.title, self.description, self.table)


@dataclass(frozen=True)
class IntervalRow:
    """Values of one thing.

    Attributes:
        name: Its name.
        values: Single values, for example one for each seed.
        center: Their mean.
        low: Lower end of the interval.
        high: Upper end of the interval.
        text: Mean and interval as text.
        color: Number of its color.
    """

    name: str
    values: Sequence[float]
    center: float
    low: float
    high: float
    text: str
    color: int = 0


@dataclass(frozen=True)
class _Rows:
    """A chart with one row below the other; a name above each.

    Attributes:
        title: Its heading.
        description: What it shows, for those who do not see it.
        x: Horizontal axis.
        table: The numbers.
    """

    width: ClassVar[int] = _WIDTH

    title: str
    description: str
    x: Axis
    table: Table | None = field(default=None, kw_only=True)

    def x_of(self, place: float) -> str:
        """Return the horizontal coordinate of a place on the axis."""
        return f"{_RIGHT + place * (_WIDTH - 2 * _RIGHT):.1f}"

    def at(self, value: float) -> str:
        """Return the horizontal coordinate of a value."""
        return self.x_of(self.x.place(value))

    def top_of(self, index: int) -> int:
        """Return the upper edge of a row."""
        return index * _ROW

    def markdown(self) -> str:
        """Return the block in Markdown: its numbers."""
        return _in_markdown(self.title, self.description, self.table)


@dataclass(frozen=True)
class Intervals(_Rows):
    """A chart of means with intervals, one row each.

    Attributes:
        rows: The rows from top to bottom.
    """

    template: ClassVar[str] = "intervals"

    rows: Sequence[IntervalRow]

    @property
    def height(self) -> int:
        """Height in units of the coordinate system."""
        return _ROW * len(self.rows) + _FOOT


@dataclass(frozen=True)
class Bars(_Rows):
    """A chart of bars that may consist of parts, one row each.

    Attributes:
        rows: Name, and the sizes of the parts of each bar.
        parts: Names of the parts.
    """

    template: ClassVar[str] = "bars"

    rows: Sequence[tuple[str, Sequence[float]]]
    parts: Sequence[str]

    @property
    def height(self) -> int:
        """Height in units of the coordinate system."""
        return _ROW * len(self.rows) + _FOOT

    def pieces(self, sizes: Sequence[float]) -> Iterator[tuple[int, str, float, float, str]]:
        """Yield number, name, left edge, width and text of the parts of a bar."""
        start = 0.0
        for number, (name, size) in enumerate(zip(self.parts, sizes, strict=True)):
            left, right = (float(self.at(value)) for value in (start, start + size))
            yield number, name, left, max(0.0, right - left), self.x.text(size)
            start += size


@dataclass(frozen=True)
class Charts:
    """Charts next to each other, as many as there is room for.

    Attributes:
        charts: The charts.
    """

    template: ClassVar[str] = "charts"

    charts: Sequence[Block]

    def markdown(self) -> str:
        """Return the block in Markdown."""
        return "\n\n".join(chart.markdown() for chart in self.charts)


def _in_markdown(title: str, description: str, table: Table | None) -> str:
    text = f"**{markdown(title)}.** {markdown(description)}"
    return text if table is None else f"{text}\n\n{table.markdown()}"
