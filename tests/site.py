"""The documentation as a site: built without a warning, complete, and without other hosts.

``python -m tests.site FOLDER`` builds it there and checks it. It needs the extras ``dev``
and ``docs``; ``.ci/matrix site`` runs it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from typer.main import get_command

import logitcache
from logitcache import errors
from logitcache.cli.app import app
from tests.cli.test_flags import LIST
from tests.cli.test_flags import commands as commands_of
from tests.configuration_page import PAGE
from tests.guides import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

CONFIGURATION = ROOT / ".site" / "mkdocs.yml"
_LOADED = re.compile(
    r'<(?:script|img|iframe|source)[^>]+src="?([^" >]+)|<link[^>]+href="?([^" >]+)'
)
"""What a browser loads with a page; links that are followed by hand are not."""


def build(folder: Path) -> None:
    """Build the site; a warning is an error."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    command += ["-f", str(CONFIGURATION), "-d", str(folder)]
    subprocess.run(command, check=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"})


def missing(folder: Path) -> Iterator[str]:
    """Yield the public names, errors, flags and settings that the reference does not have."""
    python, commands, error_page, settings = (
        (folder / f"{name}.html").read_text()
        for name in ("python", "options", "errors", "configuration")
    )
    for name in logitcache.__all__:
        if not re.search(rf"logitcache\.{name}\b", python):
            yield f"python: {name}"
    for name in errors.__all__:
        found = getattr(errors, name)
        if isinstance(found, type) and f"<code>{name}</code>" not in error_page:
            yield f"errors: {name}"
    former = {name for name, command in commands_of(get_command(app)) if command.hidden}
    for line in LIST.read_text().splitlines():
        command, flags, *_ = line.split(" | ")
        if command in former:
            continue  # a name of an earlier release
        title = "logitcache" if command == "logitcache" else f"logitcache {command}"
        section = commands.partition(f">{title}<")[2].partition("<h2")[0]
        for flag in flags.split(", "):
            if f"<code>{flag.removeprefix('--no-')}" not in section:
                yield f"commands: {command} {flag}"
    for key in re.findall(r"^\| `([^`]+)` \|", PAGE.read_text(), re.M):
        if f"<code>{key}</code>" not in settings:
            yield f"configuration: {key}"


def requests(folder: Path) -> Iterator[str]:
    """Yield what pages load from other hosts."""
    for page in folder.rglob("*.html"):
        for found in _LOADED.finditer(page.read_text()):
            url = found[1] or found[2]
            if re.match(r"(https?:)?//", url) and 'rel="canonical"' not in found[0]:
                yield f"{page.relative_to(folder)}: {url}"


def main(folder: Path) -> None:
    """Build the site and print its faults."""
    build(folder)
    found = [*missing(folder), *requests(folder)]
    print(*found, sep="\n")
    sys.exit(f"{len(found)} faults" if found else None)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
