"""Escaping of text for Markdown, so that names from data contain no markup or HTML."""

from __future__ import annotations

import re

from logitcache.text import visible

__all__ = ["block", "code", "markdown"]

# underscores within words are no markup in Markdown, so names with them stay readable
_MARKS = re.compile(r"[\\`*<>&\[\]|#~!]|:(?=//)|(?<!\w)_|_(?!\w)")


def markdown(text: str) -> str:
    """Return escaped text for a paragraph or the cell of a table."""
    return _MARKS.sub(r"\\\g<0>", visible(text))


def code(text: str) -> str:
    """Return a code span for a paragraph or the cell of a table."""
    shown = visible(text).replace("|", "\\|")
    fence = _fence(shown, 1)
    apart = " " if shown.startswith("`") or shown.endswith("`") else ""
    return f"{fence}{apart}{shown}{apart}{fence}"


def block(language: str, text: str) -> str:
    """Return a code block for text that ends with a line break."""
    fence = _fence(text, 3)
    return f"{fence}{language}\n{text}{fence}"


def _fence(text: str, least: int) -> str:
    """Return a fence with more backticks than any run of them in a text."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    return "`" * max(least, longest + 1)
