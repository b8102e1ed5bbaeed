"""The third tutorial as a notebook: ``python -m tests.notebook`` writes it, a test compares.

Commands are cells of bash; ``%%writefile`` writes a file of the page. ``.ci/matrix tutorials``
runs it from top to bottom with nbclient.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import psutil

from tests.pages.blocks import TUTORIALS

__all__ = ["PAGE", "notebook"]

(PAGE,) = (page for page in TUTORIALS if page.name.startswith("3-"))
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```\n", re.DOTALL | re.MULTILINE)


def notebook(page: Path) -> dict[str, Any]:
    """Return a page as a notebook of version 4.5 of the format, without outputs."""
    cells, position, text = [], 0, page.read_text()
    for match in _BLOCK.finditer(text):
        cells.append(_cell("markdown", text[position : match.start()]))
        cells.append(_cell("code", _code(match[1], match[2])))
        position = match.end()
    cells.append(_cell("markdown", text[position:]))
    cells = [cell | {"id": f"cell-{number}"} for number, cell in enumerate(cells) if cell["source"]]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {
        "cells": cells,
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def _code(language: str, text: str) -> str:
    """Return a block as a cell; a server that a cell starts must not keep its output open."""
    if language == "bash":
        return f"%%bash\nset -e\n{text}"
    name, _, rest = text.partition("\n")
    return f"%%writefile {name.removeprefix('# ')}\n{rest}"


def _cell(kind: str, text: str) -> dict[str, Any]:
    source = text.strip("\n").splitlines(keepends=True)
    extra: dict[str, Any] = {"execution_count": None, "outputs": []} if kind == "code" else {}
    return {"cell_type": kind, "metadata": {}, "source": source, **extra}


def run(folder: Path) -> None:
    """Run the notebook in a folder where the tutorials before it have been run."""
    from nbclient import NotebookClient
    from nbformat import reads

    document = reads(json.dumps(notebook(PAGE)), as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    try:
        NotebookClient(document, timeout=600, resources=resources).execute()
    finally:
        for process in psutil.process_iter(["cwd"]):  # the web server, which the kernel leaves
            if process.info["cwd"] == str(folder.resolve()):
                process.terminate()


def main(*arguments: str) -> None:
    """Write the notebook next to its page, or run it: ``run FOLDER``."""
    if arguments:
        run(Path(arguments[1]))
        return
    path = PAGE.with_suffix(".ipynb")
    path.write_text(json.dumps(notebook(PAGE), indent=1, ensure_ascii=False) + "\n")
    print(path)


if __name__ == "__main__":
    main(*sys.argv[1:])
