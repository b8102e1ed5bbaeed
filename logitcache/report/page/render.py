"""A report as HTML and as Markdown."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined

from logitcache.markdown import markdown
from logitcache.text import visible

if TYPE_CHECKING:
    from collections.abc import Mapping

    from logitcache.report.page.blocks import Section

__all__ = ["as_html", "as_markdown"]

_PAGE = "page.html.j2"
_UNIT = re.compile(r"(?<=\d) (?=%)")


def as_html(title: str, subtitle: str, sections: Mapping[str, Section], footer: str) -> str:
    """Return a report as one HTML document that refers to nothing outside of itself.

    Args:
        title: Its heading.
        subtitle: One sentence below it.
        sections: The sections by their ids.
        footer: One sentence at the end.
    """
    page = _templates().get_template(_PAGE)
    return page.render(title=title, subtitle=subtitle, sections=[*sections.items()], footer=footer)


def as_markdown(title: str, subtitle: str, sections: Mapping[str, Section], footer: str) -> str:
    """Return a report as Markdown, with the numbers of its charts as tables.

    Args:
        title: Its heading.
        subtitle: One sentence below it.
        sections: The sections by their ids.
        footer: One sentence at the end.
    """
    parts = [f"# {markdown(title)}", markdown(subtitle)]
    for section in sections.values():
        parts.append(f"## {markdown(section.title)}")
        parts += [block.markdown() for block in section.blocks]
    return "\n\n".join([*parts, markdown(footer)]) + "\n"


@lru_cache(maxsize=1)
def _templates() -> Environment:
    """Return the templates; every text that they write is escaped, with its characters visible."""
    return Environment(
        loader=PackageLoader("logitcache.report.page"),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _shown(value: object) -> str:
    """Return a text with visible characters; no line ends between a number and its percent sign."""
    return _UNIT.sub("\N{NO-BREAK SPACE}", visible(value))
