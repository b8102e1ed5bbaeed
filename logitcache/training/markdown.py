"""Text from data in Markdown, without markup or HTML."""

from __future__ import annotations

import re

from logitcache.text import visible

__all__ = ["block", "code", "markdown"]

# Within a word an underscore is none of Markdown's marks, and names are full of them.
_MARKS = re.compile(r"[\\`*<>&\[\]|#~!]|:(?=//)|(?<!\w)_|_(?!\w)")


def markdown(text: str) -> str:
    """Return text for a paragraph or the cell of a table."""
    return _MARKS.sub(r"\\\g<0>", visible(text))


def code(text: str) -> str:
    """Return a span of code, in a paragraph or the cell of a table."""
    shown = visible(text).replace("|", "\\|")
    fence = _fence(shown, 1)
    apart = " " if shown.startswith("`") or shown.endswith("`") else ""
    return f"{fence}{apart}{shown}{apart}{fence}"


def block(language: str, text: str) -> str:
    """Return a block of code; the text ends with a line break."""
    fence = _fence(text, 3)
    return f"{fence}{language}\n{text}{fence}"


def _fence(text: str, least: int) -> str:
    """Return more backticks than follow each other in a text."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    return "`" * max(least, longest + 1)
