"""Fenced blocks of pages, and how each is checked.

A block belongs to exactly one class:

* *run*: a file of the page if its first line is ``# NAME``, or ``# COMMAND --config NAME``, a
  command for which the file is written; otherwise commands (``bash``) or Python. All of them are
  run by :mod:`tests.pages.session`;
* *settings*, parsed by the configuration that has them: other ``yaml``;
* *output* of the block above: ``text``;
* what a directive says, an HTML comment in front of the block, which readers do not see:
  ``<!-- not executed: REASON -->``, ``<!-- executed by PATH -->`` (a test, ``.ci/run`` or an entry
  of ``.ci/matrix``), ``<!-- compared by PATH -->`` with what it shows or was generated from,
  ``<!-- excerpt of PATH -->`` of YAML that is part of a pipeline, and
  ``<!-- output of COMMAND -->`` where no block has the command.

``<!-- blocks executed by PATH -->`` anywhere on a page stands for all blocks without another
directive. ``<!-- given: NAME, ... -->`` names what :mod:`tests.pages.givens` makes before a page
is run. In front of a block, ``<!-- before: CODE -->`` is code that is run before it, and
``<!-- file: NAME -->`` names its file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.guides import ROOT

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["PAGES", "TUTORIALS", "Block", "blocks_of", "givens_of", "named"]

TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("[0-9]*.md"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

_BLOCK = re.compile(
    r"((?:^<!--(?:(?!-->).)*-->\n)*)^```([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE
)
_DIRECTIVE = re.compile(
    r"<!-- (?P<kind>not executed|executed by|compared by|excerpt of|output of|file|before):?\s"
    r"(?P<value>.+?)\s-->\n",
    re.DOTALL,
)


def named(page: Path) -> str:
    """Return the path of a page below the repository's folder."""
    return page.relative_to(ROOT).as_posix() if page.is_relative_to(ROOT) else page.name


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: Page that has it.
        line: Number of its first line, of the fence.
        language: What the fence names; empty if nothing.
        text: Its content.
        kind: Class of the block: ``run``, ``settings``, ``output``, or the first words of a
            directive; None if it has no class.
        detail: Reason or path of the directive.
        before: Code that is run before it and not shown.
        file: Name of the file that it is the content of.
    """

    page: Path
    line: int
    language: str
    text: str
    kind: str | None = None
    detail: str = ""
    before: str = ""
    file: str | None = None

    @property
    def place(self) -> str:
        """Page and line, for messages."""
        return f"{named(self.page)}:{self.line}"

    @property
    def command(self) -> str | None:
        """Command that reads the file, if the first line has it."""
        match = re.match(r"# (.* --config .*)", self.text)
        return match[1] if match and self.language == "yaml" else None


def blocks_of(page: Path) -> list[Block]:
    """Return the blocks of a page in order.

    Raises:
        AssertionError: A comment in front of a block is no directive, or there are two of a kind.
    """
    text = page.read_text()
    default = re.search(r"^<!-- blocks (executed by) (\S.*?) -->$", text, re.MULTILINE)
    found = []
    for match in _BLOCK.finditer(text):
        directives = list(_DIRECTIVE.finditer(match[1]))
        line = text.count("\n", 0, match.start(2)) + 1
        place = f"{named(page)}:{line}"
        assert "".join(d[0] for d in directives) == match[1], f"{place}: {match[1]} is no directive"
        values = {d["kind"]: d["value"].strip() for d in directives}
        assert len(values) == len(directives), f"{place}: two directives of a kind"
        before = f"{values.pop('before')}\n" if "before" in values else ""
        file = values.pop("file", None) or _file_of(match[2], match[3])
        assert len(values) <= 1, f"{place}: more than one class"
        kind, detail = next(iter(values.items()), ("", ""))
        if not kind:
            kind, detail = (default[1], default[2]) if default else (_kind_of(match[2], file), "")
        found.append(Block(page, line, match[2], match[3], kind, detail, before, file))
    return found


def _file_of(language: str, text: str) -> str | None:
    match = re.match(r"# ([\w./-]+\.\w+)\b|# .* --config ([\w./-]+)", text)
    return (match[1] or match[2]) if match and language != "bash" else None


def _kind_of(language: str, file: str | None) -> str | None:
    if file or language in {"bash", "python"}:
        return "run"
    return {"text": "output", "yaml": "settings"}.get(language)


def givens_of(page: Path) -> list[str]:
    """Return the names of what a page takes as given."""
    match = re.search(r"^<!-- given: (.+?) -->$", page.read_text(), re.MULTILINE)
    return match[1].split(", ") if match else []
