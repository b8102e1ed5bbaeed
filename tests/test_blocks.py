"""Blocks of code in the pages: commands that exist with their options, and code that can be parsed.

Tutorials and guides are run as a whole (``test_tutorials.py``, ``test_guides.py``); this holds for
the blocks of all pages, also of those whose commands need machines or data that tests do not have.
"""

from __future__ import annotations

import ast
import re
import shlex
from typing import TYPE_CHECKING, Any

import pytest
import typer.main
import yaml

from logitcache.cli.app import app
from tests.test_docs import CURRENT, DOCS, named

if TYPE_CHECKING:
    from pathlib import Path

PAGES = [*CURRENT, *sorted((DOCS / "tutorials").glob("*.md"))]
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_COMMAND = re.compile(r"(?:[A-Z_]+=\S+ )*(?:torchrun .*-m )?logitcache (.*)")


def blocks(page: Path, *languages: str) -> list[str]:
    return [text for language, text in _BLOCK.findall(page.read_text()) if language in languages]


def commands(page: Path) -> list[str]:
    """Return the arguments of the calls of logitcache in a page."""
    found = []
    for text in blocks(page, "bash", "sh", ""):
        for line in text.replace("\\\n", " ").splitlines():
            call = re.sub(r"\"\$\(.*\)\"", "VALUE", line)  # shlex does not know substitutions
            if match := _COMMAND.match(re.sub(r" (…|&|>.*)(?= |$)", " ", call)):
                found.append(match[1])
    return found


def check(arguments: str) -> None:
    """Parse the arguments of a call.

    Raises:
        UsageError: Of typer, for a command or an option that does not exist, or lacks its value.
    """
    command: Any = typer.main.get_command(app)
    words = shlex.split(arguments, comments=True)
    context = command.make_context("logitcache", words)
    while hasattr(command, "commands"):
        name, command, words = command.resolve_command(
            context, [*context._protected_args, *context.args]
        )
        context = command.make_context(name, words, parent=context)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_commands_exist_with_their_options(page: Path) -> None:
    for arguments in commands(page):
        check(arguments)


def test_a_command_or_an_option_that_does_not_exist_is_found() -> None:
    for wrong in ("trian --out runs/a", "train --otu runs/a", "card runs/cache --citation"):
        with pytest.raises(Exception, match=r"No such|requires an argument"):
            check(wrong)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_code_and_settings_can_be_parsed(page: Path) -> None:
    for text in blocks(page, "python"):
        ast.parse(text)
    for text in blocks(page, "yaml"):
        assert yaml.safe_load(text) is not None


def test_there_are_commands_to_check() -> None:
    assert sum(len(commands(page)) for page in PAGES) > 100
