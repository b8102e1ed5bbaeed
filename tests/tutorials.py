"""The tutorials, typed as they are written: each page is compiled to one script of bash.

``python -m tests.tutorials FOLDER [NUMBER...]`` runs them there, one after the other, by default
all; ``.ci/matrix tutorials`` runs this, and ``test_tutorials.py`` the short ones.

A block of ``bash`` is run; any other block whose first line is ``# NAME`` becomes a file of that
name; ``text`` is output. ``<!-- not run: REASON -->`` in front of a block leaves it out.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.guides import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["PAGES", "blocks", "run_page", "script_of"]

PAGES = sorted((ROOT / "docs" / "tutorials").glob("[0-9]*.md"))
_BLOCK = re.compile(r"(?:<!-- not run: (.+?) -->\n)?```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(page: Path) -> Iterator[tuple[str, str, str | None]]:
    """Yield language and text of the blocks of a page, and why one is not run."""
    for match in _BLOCK.finditer(page.read_text()):
        yield match[2], match[3], match[1]


def script_of(page: Path) -> str:
    """Return the commands of a page, with its files written where the page shows them."""
    parts = ["set -euo pipefail", "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT"]
    for language, text, reason in blocks(page):
        name = re.match(r"# (\S+\.\w+)\n", text)
        if language == "text" or reason:
            continue
        if language == "bash":
            parts.append(text)
        else:
            assert name, f"{page.name}: a block of {language or 'no language'} without a name"
            parts.append(f"cat > {name[1]} <<'END OF FILE'\n{text}END OF FILE")
    return "\n".join(parts)


def run_page(page: Path, folder: Path, port: int = 8000) -> str:
    """Run a page in a folder and return its output.

    Args:
        page: The tutorial.
        folder: Where earlier tutorials have been run, if this one continues them.
        port: For the web server of a page.
    """
    paths = [str(Path(sys.executable).parent), os.environ["PATH"]]
    done = subprocess.run(
        ["bash", "-c", script_of(page).replace("8000", str(port))],
        cwd=folder,
        env={
            **os.environ,
            "PATH": os.pathsep.join(paths),
            "PYTEST_ADDOPTS": "-p no:cacheprovider",
            "OMP_NUM_THREADS": "1",  # small networks, next to other tests
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{page.name}:\n{done.stdout[-6000:]}"
    return done.stdout


def main(folder: Path, numbers: list[str]) -> None:
    """Run tutorials and print how long each has taken."""
    folder.mkdir(parents=True, exist_ok=True)
    for page in PAGES:
        if not numbers or page.name.partition("-")[0] in numbers:
            started = time.monotonic()
            print(run_page(page, folder))
            print(f"== {page.stem}: {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
