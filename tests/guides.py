"""Pages of ``docs/`` that show how to extend the package, followed on a copy of the package.

A page has files, as blocks of Python whose first line is a comment with the path, and changes of
existing files, as blocks of ``diff`` whose first line is the same.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

__all__ = ["code_lines", "follow", "page_code", "section_code"]

ROOT = Path(__file__).parent.parent


def files_of(page: Path) -> dict[str, str]:
    """Return the files of a page by path."""
    blocks = re.findall(r"```python\n(# (\S+)\n.*?)```", page.read_text(), re.DOTALL)
    return {name: text for text, name in blocks}


def code_lines(page: Path) -> int:
    """Return the number of lines of a page that become part of the package, without blank ones."""
    return sum(
        bool(line.strip())
        for name, text in files_of(page).items()
        if name.startswith("logitcache/")
        for line in text.splitlines()[1:]
    )


def section_code(page: str, heading: str) -> str:
    """Return the Python code of a section of a page.

    Args:
        page: Path of the page below the repository's folder.
        heading: Title of the section, without subsections.
    """
    section = (ROOT / page).read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return _code(section, f"{page}, {heading}")


def page_code(page: str) -> str:
    """Return all Python code of a page.

    Args:
        page: Path of the page below the repository's folder.
    """
    return _code((ROOT / page).read_text(), page)


def _code(text: str, where: str) -> str:
    code = "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    assert code, f"no code in {where}"
    return code


def follow(page: Path, folder: Path) -> str:
    """Copy the package, make the changes of a page, run its tests, and return their output.

    Raises:
        AssertionError: A change does not fit, or a test fails.
    """
    shutil.copytree(ROOT / "logitcache", folder / "logitcache")
    for name, text in files_of(page).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    for name, hunks in re.findall(r"```diff\n# (\S+)\n(.*?)```", page.read_text(), re.DOTALL):
        changed = (folder / name).read_text()
        for hunk in hunks.split("@@\n"):
            before, after = _sides(hunk)
            assert changed.count(before) == 1, f"{page.name}: {name} has no such lines:\n{before}"
            changed = changed.replace(before, after)
        (folder / name).write_text(changed)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"],
        cwd=folder,
        # without the options of the outer run, whose --basetemp would be emptied
        env={**os.environ, "PYTHONPATH": str(folder), "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _sides(hunk: str) -> tuple[str, str]:
    lines = hunk.splitlines(keepends=True)
    before = "".join(line[1:] or "\n" for line in lines if not line.startswith("+"))
    return before, "".join(line[1:] or "\n" for line in lines if not line.startswith("-"))
