"""Reports: what some paths lead to, section by section, as one document."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from logitcache.errors import LogitcacheError, redacted
from logitcache.report.page.blocks import Note, Section
from logitcache.report.page.cache_outputs import ReportSettings
from logitcache.report.page.kinds import read_paths
from logitcache.report.page.render import as_html, as_markdown
from logitcache.report.page.sections import SECTIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from logitcache.report.page.contents import Contents

__all__ = ["FORMATS", "Report", "make_report"]

FORMATS: dict[str, Callable[[str, str, Mapping[str, Section], str], str]] = {
    "html": as_html,
    "md": as_markdown,
}
"""Functions that write a report, by the name of its format."""


_PROBLEMS = "problems"


@dataclass(frozen=True)
class Report:
    """A report.

    Attributes:
        text: The document.
        caches: Number of caches that it describes.
        runs: Number of training runs that it describes.
        problems: What could not be read, and why.
    """

    text: str
    caches: int
    runs: int
    problems: list[tuple[str, LogitcacheError]]

    def to_json(self) -> dict[str, Any]:
        """Return the numbers of the report as JSON values, without its text."""
        problems = [{"where": where, "error": error.what} for where, error in self.problems]
        return {"caches": self.caches, "runs": self.runs, "problems": problems}


def make_report(
    paths: Sequence[str], *, form: str = "html", settings: ReportSettings | None = None
) -> Report:
    """Make a report on caches, training runs and folders of them.

    A path or a section that fails becomes a note in the report, and the rest is made.

    Args:
        paths: Folders or URLs.
        form: Format: a key of :data:`FORMATS`.
        settings: What is read of caches.

    Raises:
        LogitcacheError: None of the paths can be read.
    """
    contents = read_paths(paths, settings or ReportSettings())
    # the problems of all sections are listed on top, so that section is made last
    order = sorted(SECTIONS, key=_PROBLEMS.__eq__)
    made = {name: _section(name, contents) for name in order}
    sections = {name: found for name in SECTIONS if (found := made[name]) is not None}
    title = f"logitcache report: {', '.join(_shown(path) for path in paths)}"
    subtitle = "Precomputed teacher outputs and the networks that were trained."
    footer = f"Made by logitcache {version('logitcache')}."
    text = FORMATS[form](title, subtitle, sections, footer)
    return Report(text, len(contents.caches), len(contents.runs), contents.problems)


def _section(name: str, contents: Contents) -> Section | None:
    """Return a section; one that fails has a note instead of its contents."""
    try:
        return SECTIONS[name](contents)
    except LogitcacheError as error:
        title = name.replace("-", " ").capitalize()
        contents.problems.append((f"section {title}", error))
        return Section(title, [Note(f"This section could not be made: {error.brief}")])


def _shown(path: str) -> str:
    return redacted(path).rstrip("/").rpartition("/")[2] or path
