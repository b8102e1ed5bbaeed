"""A page as one session: its commands as a script of bash, then its Python as one script."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

from tests.guides import ROOT
from tests.pages.blocks import TUTORIALS, blocks_of, givens_of, named
from tests.pages.givens import GIVENS
from tests.pages.servers import store_environment

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["is_run", "run_page", "script_of"]


def is_run(page: Path) -> bool:
    """Return whether a page has blocks that are run."""
    return any(block.kind == "run" for block in blocks_of(page))


def script_of(page: Path) -> str:
    """Return the commands of a page.

    Files of tutorials are written where they are shown, those of other pages before the first
    command. Python without a name is one script, which is run after the commands.
    """
    files: list[str] = []
    commands: list[str] = []
    python: list[str] = []
    for block in blocks_of(page):
        if block.kind != "run":
            continue
        if block.file:
            text = f"{block.before}{block.text}"
            (commands if page in TUTORIALS else files).append(
                f"mkdir -p $(dirname {block.file})\n"
                f"cat > {block.file} <<'END OF FILE'\n{text}END OF FILE"
            )
            if block.command:
                commands.append(block.command)
        elif block.language == "python":
            python.append(f"# {block.place}\n{block.before}{block.text}")
        else:
            commands.append(f"{block.before}{block.text}")
    if python:
        script = "\n".join(python)
        commands.append(f"cat > page.py <<'END OF FILE'\n{script}END OF FILE\npython page.py")
    head = ["set -euo pipefail", "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT"]
    return "\n".join([*head, *files, *commands])


def run_page(page: Path, folder: Path, programs: Path, *, store: str, port: int = 8000) -> str:
    """Run a page in a folder and return its output.

    Args:
        page: A page with blocks that are run.
        folder: Where the page is run; earlier tutorials have been run there, if it continues them.
        programs: Folder with the programs ``python`` and ``logitcache``.
        store: Address of the object store, which stands for ``s3://`` and ``https://host``.
        port: For the web server of a page.

    Raises:
        AssertionError: A command has failed.
    """
    bucket = f"{page.stem.lower()}-bucket"
    replaced = {
        "s3://bucket": f"s3://{bucket}",
        "https://host": f"{store}/{bucket}",
        "8000": str(port),
    }
    for name in givens_of(page):
        replaced |= GIVENS[name](folder)
    script = script_of(page)
    for text, instead in replaced.items():
        script = script.replace(text, instead)
    environment = {
        **os.environ,
        **store_environment(store, bucket),
        "PATH": os.pathsep.join([str(programs), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "PYTEST_ADDOPTS": "-p no:cacheprovider",
        "OMP_NUM_THREADS": "1",  # small networks, next to other tests
        "HF_HUB_OFFLINE": "1",
        "XDG_CACHE_HOME": str(folder / "copies"),
    }
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{named(page)}:\n{done.stdout[-6000:]}"
    return done.stdout
