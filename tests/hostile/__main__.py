"""Visit hostile caches and print what ``logitcache verify`` says of each, as a table of Markdown.

``python -m tests.hostile [PATTERN]``; names of inputs that are not refused as they should be go to
stderr.
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from pathlib import Path

from tests.hostile.forge import Forgery
from tests.hostile.inputs import INPUTS, intact
from tests.hostile.test_hostile import check
from tests.hostile.visit import Outcome, visit


def message_of(outcome: Outcome, root: Path) -> str:
    """Return the first line that names what is wrong."""
    text = outcome.output.replace(str(root), "CACHE")
    for line in text.splitlines():
        if line.startswith("error: "):
            return line.removeprefix("error: ")
        cells = [cell.strip() for cell in line.split("│")]
        if len(cells) > 3:
            return ": ".join(cells[2:4])
    return "ok" if outcome.code == 0 else text.strip().splitlines()[-1]


def main(pattern: str = "") -> None:
    """Visit the inputs whose names match a pattern."""
    print("| kind | input | exit code | message |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        intact(base)
        for number, hostile in enumerate(INPUTS):
            if not re.search(pattern, hostile.name):
                continue
            root = Path(folder) / str(number)
            shutil.copytree(base, root / "cache")
            hostile.build(Forgery(root / "cache"))
            outcomes = visit(str(root / "cache"))
            try:
                check(outcomes, hostile)
            except AssertionError as error:
                print(f"{hostile.name}: {str(error)[-1500:]}", file=sys.stderr)
            if isinstance(outcomes, dict):
                found = outcomes["verify"]
                message = message_of(found, root / "cache").replace("|", "\\|")
                print(f"| {hostile.kind} | {hostile.name} | {found.code} | {message} |")
            shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
